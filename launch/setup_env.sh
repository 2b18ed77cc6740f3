#!/usr/bin/env bash
# Makes .venv at the root of the repository, installs this package into it (the fonts of pages come along),
# and makes sure of Chromium. A second call finds its own notes in .venv and returns at once.
#
#   bash launch/setup_env.sh [--dry-run] [EXTRA ...]     EXTRA: an extra of setup.py, as dev, cuda, tpu, wandb
#
# --dry-run says what is missing and would be made or installed.
#
# Needs Debian or Ubuntu with Python 3.11 or newer and a network. What only root can install is installed
# when this runs as root or sudo asks for no password; otherwise a message says what to ask for.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv=.venv
python=$venv/bin/python
log=$venv/setup.log
installed=$venv/installed    # a line for each extra that is there: KEY EXTRA
browser=$venv/chromium.path  # the Chromium that was found
key=$(printf '%s\n' "$PWD" | cat - setup.py launch/setup_env.sh | sha256sum | cut -c1-16)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

has_extra() { grep -qsxF "$key $1" "$installed"; }

is_ready() {
  local extra
  for extra in base "$@"; do
    has_extra "$extra" || return 1
  done
  [[ -x $python && -s $browser && -x $(<"$browser") ]]
}

# Runs a command with its output in the log; $1 says what failed if it does.
logged() {
  local what=$1
  shift
  if ! "$@" >>"$log" 2>&1; then
    fail "$what; last line: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c1-300) (all of it: $PWD/$log)"
  fi
}

# Prefix that makes a command run as root, or status 1 when there is none.
root_prefix() {
  if [[ $(id -u) == 0 ]]; then
    return 0
  fi
  sudo -n true 2>/dev/null && printf 'sudo -n'
}

apt_install() {
  local prefix
  command -v apt-get >/dev/null && prefix=$(root_prefix) || return 1
  if [[ ! -e $venv/apt-updated ]]; then
    # shellcheck disable=SC2086  # the prefix is words
    $prefix apt-get -o DPkg::Lock::Timeout=120 update -qq >>"$log" 2>&1 || return 1
    touch "$venv/apt-updated"
  fi
  # shellcheck disable=SC2086
  $prefix env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
    install -y -qq --no-install-recommends "$@" >>"$log" 2>&1
}

find_python() {
  local name found="none"
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    command -v "$name" >/dev/null || continue
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
    found=$("$name" --version 2>&1 | head -n 1)
  done
  fail "Python 3.11 or newer is needed and was not found (found: $found); on Debian 12 or Ubuntu 24.04:" \
    "sudo apt-get install python3 python3-venv"
}

make_venv() {
  local base
  if [[ -x $python ]] && "$python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  base=$(find_python)
  say "making $venv with $("$base" --version) ($base)"
  rm -rf "$venv"
  mkdir -p "$venv"
  if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian and Ubuntu keep this part of Python in a package of its own.
    apt_install python3-venv "$(basename "$(readlink -f "$base")")-venv" || apt_install python3-venv || true
  fi
  if "$base" -c 'import ensurepip, venv' 2>/dev/null; then
    logged "$venv could not be made" "$base" -m venv "$venv"
  elif "$base" -m pip --version >/dev/null 2>&1; then
    logged "$venv could not be made" "$base" -m venv --without-pip "$venv"
    logged "pip could not be installed into $venv" "$base" -m pip --python "$python" install -q pip
  else
    rm -rf "$venv"
    fail "Python's venv module is missing; install it: sudo apt-get install python3-venv"
  fi
}

# Twice as quick as pip; where it does not get through pip still may, for it knows this machine's pip settings.
with_uv() {
  "$python" -m pip install -q --no-compile uv &&
    "$venv/bin/uv" pip install -q --system-certs --python "$python" -e .
}

install_package() {
  local extra
  if ! has_extra base; then
    say "installing the packages (about half a minute with a good network)"
    if ! with_uv >>"$log" 2>&1; then
      logged "the packages could not be installed" "$python" -m pip install -q --no-compile -e .
    fi
    printf '%s base\n' "$key" >"$installed"
  fi
  for extra in "$@"; do
    if ! has_extra "$extra"; then
      say "installing the extra packages of '$extra'"
      logged "the extra '$extra' could not be installed" "$python" -m pip install -q --no-compile -e ".[$extra]"
      printf '%s %s\n' "$key" "$extra" >>"$installed"
    fi
  done
}

# The Chromium that the renderer would take, if it runs.
find_browser() {
  "$python" -c '
from render.chromium import chromium_version, find_chromium
path = find_chromium()
chromium_version(path)
print(path)' 2>>"$log"
}

install_browser() {
  local path
  if ! path=$(find_browser); then
    say "installing Chromium"
    # Debian has a small Chromium without windows; elsewhere Playwright brings one. Pages are drawn with
    # fonts that came with the packages and with no others, so the system needs none.
    if ! apt_install chromium-headless-shell; then
      "$python" -m playwright install chromium-headless-shell >>"$log" 2>&1 ||
        fail "Chromium is missing and could not be downloaded; install it and start again:" \
          "sudo apt-get install chromium-headless-shell (Debian), or with a network" \
          "$PWD/$python -m playwright install chromium-headless-shell (details: $PWD/$log)"
      path=$(find_browser) || apt_libraries
    fi
    path=$(find_browser) ||
      fail "Chromium is installed but does not start; install its libraries and start again:" \
        "sudo $PWD/$python -m playwright install-deps chromium-headless-shell (details: $PWD/$log)"
  fi
  printf '%s\n' "$path" >"$browser"
}

# The libraries that Playwright's Chromium needs.
apt_libraries() {
  local prefix
  prefix=$(root_prefix) || return 0
  # shellcheck disable=SC2086
  $prefix "$python" -m playwright install-deps chromium-headless-shell >>"$log" 2>&1 || true
}

# What a call without --dry-run would do.
plan() {
  local extra
  [[ -x $python ]] || printf 'make %s with %s\n' "$PWD/$venv" "$(find_python)"
  has_extra base || printf 'install this package and what it needs: pip install -e .\n'
  for extra in "$@"; do
    has_extra "$extra" || printf "install the extra packages of '%s': pip install -e '.[%s]'\n" "$extra" "$extra"
  done
  [[ -s $browser && -x $(<"$browser") ]] || printf 'find Chromium, or install it: chromium-headless-shell (apt), or Playwright'"'"'s\n'
}

if [[ ${1:-} == --dry-run ]]; then
  shift
  is_ready "$@" || plan "$@"
  exit
fi
if ! is_ready "$@"; then
  # Two launches at once make one environment.
  exec 9<.
  flock 9
  if ! is_ready "$@"; then
    started=$SECONDS
    make_venv
    install_package "$@"
    install_browser
    say "ready in $((SECONDS - started)) s: $PWD/$venv"
  fi
  exec 9<&-
fi
