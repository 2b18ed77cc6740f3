#!/usr/bin/env bash
# Runs the tests: sets everything up with the test packages when needed (launch/setup_env.sh), then pytest.
#
#   bash launch/test.sh [--dry-run] [ARGUMENT ...]       as: tests/rl, -k name, -m soak
#
# --dry-run prints what would be run.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/options.sh
source launch/options.sh
dry_run=""
if [[ ${1:-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
# SkyPilot wants older packages than ours, so its parser has an environment of its own.
sky=(.venv/bin/uv pip install -q --system-certs --python .venv/sky/bin/python "skypilot>=0.14,<0.15")
if [[ ! $dry_run ]]; then
  bash launch/setup_env.sh dev
  if [[ ! -x .venv/sky/bin/sky ]] && ! { .venv/bin/uv venv -q --clear .venv/sky && "${sky[@]}"; }; then
    printf 'test: SkyPilot could not be installed; the test with its parser is skipped\n' >&2
  fi
fi
# The whole suite gets a worker for each core; a file's tests stay together, for they share what is dear to make.
# Files start in the order of tests/conftest.py: pytest-xdist's own order puts files of few tests last, and a
# whole training run is one test.
[[ $# -gt 0 ]] || set -- --numprocesses logical --dist loadfile --no-loadscope-reorder --max-worker-restart 0
if [[ $dry_run ]]; then
  printf '%s\n' "bash launch/setup_env.sh dev" "$(quoted .venv/bin/uv venv -q --clear .venv/sky)" "$(quoted "${sky[@]}")"
  printf '%s\n' "$(quoted .venv/bin/python -m pytest "$@")"
  exit
fi
exec .venv/bin/python -m pytest "$@"
