#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it as a queued resource, sets every host up (JAX, Chromium, fonts), and
# starts the trainer on all of them. When the slice is taken away it is asked for again, and the run continues
# from its newest checkpoint, which must lie in a bucket that all hosts reach (--run.dir gs://...).
#
#   bash launch/tpu_vm.sh --type v5litepod-256 --zone us-west4-a [OPTION ...] --config FILE --run.dir gs://... [...]
#
#   --type TYPE       accelerator, as v5litepod-256, v5p-64, v6e-64
#   --zone ZONE       where
#   --name NAME       of the slice and its request                        (memocr)
#   --project ID      Google Cloud project                                (gcloud's)
#   --version V       runtime image                     (that of the type)
#   --spot            a slice that may be taken away, for less money
#   --bucket NAME     Cloud Storage bucket, mounted on every host as /runs (needs gcsfuse in the image)
#   --model ID        Hugging Face model that every host downloads first, to models/NAME
#   --tries N         slices asked for before this gives up               (20)
#   --poll S          seconds between two looks at the request            (30)
#   --keep            leave the slice when the run has ended; without it, it is given back
#   --dry-run         print the commands instead of running them
#
# Everything else goes to the trainer. Needs gcloud, logged in.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
source launch/options.sh

name=memocr type="" zone="" project="" version="" spot="" bucket="" model="" tries=20 poll=30 keep="" dry_run=""
arguments=()
while (($#)); do
  case $1 in
    --name) name=$(value "$@"); shift ;;
    --type) type=$(value "$@"); shift ;;
    --zone) zone=$(value "$@"); shift ;;
    --project) project=$(value "$@"); shift ;;
    --version) version=$(value "$@"); shift ;;
    --bucket) bucket=$(value "$@"); shift ;;
    --model) model=$(value "$@"); shift ;;
    --poll) poll=$(value "$@"); shift ;;
    --tries) tries=$(whole "$@"); shift ;;
    --spot) spot=yes ;;
    --keep) keep=yes ;;
    --dry-run) dry_run=yes ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
[[ $type ]] || fail "--type is missing: name an accelerator, as --type v5litepod-256"
[[ $zone ]] || fail "--zone is missing: name a zone that has $type, as --zone us-west4-a"
require_config "${arguments[@]}"
if [[ ! $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "--version is missing: the runtime image of $type is not known here" ;;
  esac
fi
where=(--zone "$zone")
[[ $project ]] && where+=(--project "$project")

# gcloud, or what would be run.
cloud() {
  if [[ $dry_run ]]; then
    printf 'gcloud %s\n' "$(quoted "$@")"
  else
    gcloud "$@"
  fi
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || true
}

request() {
  local options=(--node-id "$name" --accelerator-type "$type" --runtime-version "$version")
  [[ $spot ]] && options+=(--spot)
  cloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}"
}

give_back() {
  cloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# Waits until the slice is there; status 1 when it will not come.
wait_until_active() {
  local now="" last=""
  while true; do
    now=$(state)
    [[ $now == "$last" ]] || printf 'tpu_vm: %s is %s\n' "$name" "${now:-not there}" >&2
    last=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | "") return 1 ;;
    esac
    sleep "$poll"
  done
}

on_all_hosts() {
  cloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"
}

# Ships this checkout, sets the hosts up and trains; the trainer's status, or another when a host went away.
train() {
  local code=$scratch/memocr.tar.gz mount="" run
  if [[ ! $dry_run ]]; then
    git ls-files -z | tar --null -czf "$code" -T -
  fi
  cloud compute tpus tpu-vm scp "$code" "$name:memocr.tar.gz" "${where[@]}" --worker=all || return
  [[ $bucket ]] && mount="sudo mkdir -p /runs && sudo chown \$USER /runs && (mountpoint -q /runs || gcsfuse --implicit-dirs $(quoted "$bucket")/runs) && "
  on_all_hosts "${mount}mkdir -p memocr && tar -xzf memocr.tar.gz -C memocr && bash memocr/launch/setup_env.sh tpu gcs" || return
  [[ ! $model ]] || on_all_hosts "cd memocr && $(fetch_model "$model")" || return
  run=$(quoted "${arguments[@]}")
  on_all_hosts "cd memocr && .venv/bin/python -m memocr_jax.train --processes.launcher tpu_vm $run"
}

scratch=${TMPDIR:-/tmp}
if [[ $dry_run ]]; then
  request
  printf '# wait until its state is ACTIVE\n'
  train
  [[ $keep ]] || give_back
  exit
fi
command -v gcloud >/dev/null || fail "gcloud was not found: install the Google Cloud CLI, or see --dry-run"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
status=1
for ((try = 1; try <= tries; try++)); do
  case $(state) in
    "") request ;;
    FAILED | SUSPENDING | SUSPENDED)
      give_back
      request
      ;;
  esac
  wait_until_active || continue
  status=0
  train || status=$?
  case $status in
    0 | 2 | 130) break ;; # done, a mistake to correct first, Ctrl-C
  esac
  printf 'tpu_vm: start %d of %d ended with status %d; the slice is %s\n' "$try" "$tries" "$status" "$(state)" >&2
done
[[ $keep ]] || give_back
exit "$status"
