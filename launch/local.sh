#!/usr/bin/env bash
# Trains on this machine: sets everything up when needed (launch/setup_env.sh), then runs the trainer.
#
#   bash launch/local.sh [ARGUMENT ...]      as: --train.steps 20, --config configs/tiny_hotpotqa.yaml
#
# Arguments go to `python -m memocr_jax.train`; without --config it runs configs/tiny.yaml. It runs at the
# root of the repository, so relative paths among the arguments start there.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh
config=(--config configs/tiny.yaml)
for argument in "$@"; do
  case $argument in
    --config | --config=*) config=() ;;
  esac
done
exec .venv/bin/python -m memocr_jax.train "${config[@]}" "$@"
