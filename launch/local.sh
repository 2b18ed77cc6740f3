#!/usr/bin/env bash
# The laptop proof on this machine: sets everything up when needed (launch/setup_env.sh), trains the nano model
# that comes with the package, and shows it before and after in runs/nano/report.html (docs/nano).
#
#   bash launch/local.sh [ARGUMENT ...]      as: --run.seed 1, --train.steps 100
#   bash launch/local.sh --config FILE [ARGUMENT ...]      runs the trainer on that configuration instead
#
# Runs at the root of the repository, so relative paths among the arguments start there.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh
for argument in "$@"; do
  case $argument in
    --config | --config=*) exec .venv/bin/python -m memocr_jax.train "$@" ;;
  esac
done
exec .venv/bin/python -m memocr_jax.story --config configs/nano.yaml "$@"
