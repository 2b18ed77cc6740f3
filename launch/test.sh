#!/usr/bin/env bash
# Runs the tests: sets everything up with the test packages when needed (launch/setup_env.sh), then pytest.
#
#   bash launch/test.sh [ARGUMENT ...]       as: tests/rl, -k name, -m soak
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh dev
# The whole suite gets a worker for each core; a file's tests stay together, for they share what is dear to make.
[[ $# -gt 0 ]] || set -- --numprocesses logical --dist loadfile --max-worker-restart 0
exec .venv/bin/python -m pytest "$@"
