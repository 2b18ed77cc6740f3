#!/usr/bin/env bash
# Trains with N processes over loopback on this machine, as N hosts would: each with its own devices, its own
# renderer and its own share of the questions. When a process dies, all are stopped and started again, and the
# run continues from its newest checkpoint.
#
#   bash launch/local_multiprocess.sh N [OPTION ...] --config FILE [ARGUMENT ...]
#
#   --devices N    CPU devices that each process shows (1); without meaning where JAX has an accelerator
#   --tries N      starts before this gives up                             (5)
#   --logs DIR     folder of the processes' logs        (runs/local_multiprocess)
#   --python FILE  interpreter                                   (.venv/bin/python, set up when needed)
#   --dry-run      print the processes' commands instead of starting them
#
# Everything else goes to the trainer. What process 0 says is also shown here. Ends with 0 when the run is
# done, 2 for a mistake to correct first, 130 or 75 after Ctrl-C or SIGTERM (saved).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
source launch/options.sh

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || fail "the first argument is '${1:-}': it must be the number of processes, such as 2"
count=$1
shift
devices=1 tries=5 logs=runs/local_multiprocess python="" dry_run=""
arguments=()
while (($#)); do
  case $1 in
    --devices) devices=$(whole "$@"); shift ;;
    --tries) tries=$(whole "$@"); shift ;;
    --python) python=$(value "$@"); shift ;;
    --logs) logs=$(value "$@"); shift ;;
    --dry-run) dry_run=yes ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
require_config "${arguments[@]}"
if [[ ! $python ]]; then
  python=.venv/bin/python
  [[ $dry_run ]] || bash launch/setup_env.sh
fi

# The command of process $1, whose coordinator listens on port $2.
command_of() {
  printf '%s\0' env "JAX_NUM_CPU_DEVICES=$devices" "$python" -m memocr_jax.train "${arguments[@]}" \
    --processes.launcher flags --processes.coordinator "127.0.0.1:$2" --processes.count "$count" \
    --processes.index "$1"
}

if [[ $dry_run ]]; then
  for ((index = 0; index < count; index++)); do
    mapfile -d '' -t words < <(command_of "$index" PORT)
    printf '%s>%q\n' "$(quoted "${words[@]}")" "$logs/process_$index.log"
  done
  exit
fi

mkdir -p "$logs"
pids=() watcher=""
stop_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done
}
received=""
trap 'received=TERM; stop_all TERM' TERM
trap 'received=INT; stop_all INT' INT
trap 'stop_all KILL; [[ $watcher ]] && kill "$watcher" 2>/dev/null' EXIT

# Starts all processes and waits for them; sets `status` to the first that is not 0, or 0.
run_all() {
  local port index ended
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  pids=() status=0
  for ((index = 0; index < count; index++)); do
    mapfile -d '' -t words < <(command_of "$index" "$port")
    "${words[@]}" >>"$logs/process_$index.log" 2>&1 &
    pids+=($!)
    printf '%s\n' $! >"$logs/process_$index.pid"
  done
  local left=$count
  while ((left)); do
    ended=0
    wait -n "${pids[@]}" || ended=$?
    if [[ $received ]] && ((ended > 128)); then # a signal ended the wait; the trainers save and end by themselves
      wait_for_all
      return
    fi
    ((ended == 127)) && return # nothing is left to wait for
    left=$((left - 1))
    if ((ended)); then
      status=$ended
      # The others wait for it in vain: a moment to end by themselves, then they are stopped.
      for ((index = 0; index < 50; index++)); do
        kill -0 "${pids[@]}" 2>/dev/null || break
        sleep 0.1
      done
      stop_all KILL
      wait "${pids[@]}" 2>/dev/null || true
      return
    fi
  done
}

wait_for_all() {
  local pid ended
  for pid in "${pids[@]}"; do
    ended=0
    wait "$pid" || ended=$?
    ((ended == 0)) || status=$ended
  done
}

for ((index = 0; index < count; index++)); do : >"$logs/process_$index.log"; done
tail -n +1 -F "$logs/process_0.log" 2>/dev/null &
watcher=$!
status=1
for ((try = 1; try <= tries; try++)); do
  run_all
  case $status in
    0 | 2 | 75 | 130) break ;;
  esac
  [[ $received ]] && break
  printf 'local_multiprocess: start %d of %d ended with status %d; the logs are in %s\n' \
    "$try" "$tries" "$status" "$logs" >&2
done
sleep 0.3 # the last lines of process 0
pids=()
exit "$status"
