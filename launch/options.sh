# shellcheck shell=bash
# What the launch scripts share: reading their own options. To be sourced.

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The value of option $1, which is $2.
value() {
  [[ $# -ge 2 && -n $2 && $2 != --* || $1 == --sbatch && $# -ge 2 ]] || fail "$1 needs a value"
  printf '%s' "$2"
}

# The same for a whole number.
whole() {
  local number
  number=$(value "$@") || exit
  [[ $number =~ ^[0-9]+$ ]] || fail "$1 is '$number', which is not a whole number"
  printf '%s' "$number"
}

# There is a --config among the trainer's arguments.
require_config() {
  local argument
  for argument in "$@"; do
    [[ $argument == --config || $argument == --config=* ]] && return
  done
  fail "--config is missing: name a configuration, for example --config configs/tiny.yaml"
}

# The arguments as words of a shell command.
quoted() {
  printf '%q ' "$@"
}

# The arguments as a JSON list.
json_list() {
  local word list=""
  for word in "$@"; do
    word=${word//\\/\\\\}
    list+="${list:+, }\"${word//\"/\\\"}\""
  done
  printf '[%s]' "$list"
}

# A command for the root of the repository that puts the Hugging Face model $1 where configurations look for
# it, models/NAME; nothing without a model.
fetch_model() {
  [[ ! $1 ]] || printf '.venv/bin/hf download %q --local-dir %q' "$1" "models/${1##*/}"
}
