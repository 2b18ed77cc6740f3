#!/usr/bin/env bash
# The laptop proof on this machine: sets everything up when needed (launch/setup_env.sh), trains the nano model
# that comes with the package, and shows it before and after in runs/nano/report.html (docs/nano).
#
#   bash launch/local.sh [--dry-run] [ARGUMENT ...]      as: --run.seed 1, --train.steps 100
#   bash launch/local.sh [--dry-run] --config FILE [ARGUMENT ...]      runs the trainer on that configuration
#
# --dry-run prints what would be run. Runs at the root of the repository, so relative paths among the arguments
# start there.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/options.sh
source launch/options.sh
dry_run=""
if [[ ${1:-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
command=(.venv/bin/python -m memocr_jax.story --config configs/nano.yaml)
for argument in "$@"; do
  case $argument in
    --config | --config=*) command=(.venv/bin/python -m memocr_jax.train) ;;
  esac
done
if [[ $dry_run ]]; then
  printf '%s\n' "bash launch/setup_env.sh" "$(quoted "${command[@]}" "$@")"
  exit
fi
bash launch/setup_env.sh
exec "${command[@]}" "$@"
