#!/usr/bin/env bash
# Runs the tests: sets everything up with the test packages when needed (launch/setup_env.sh), then pytest.
#
#   bash launch/test.sh [ARGUMENT ...]       as: tests/rl, -k name, -m soak
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh dev
# A worker for each core; a file's tests stay together, because they share what is dear to make. Tests that
# measure or load the machine (-m soak) want it for themselves.
workers=(--numprocesses logical --dist loadfile)
[[ " $* " == *" soak "* ]] && workers=()
exec .venv/bin/python -m pytest "${workers[@]}" "$@"
