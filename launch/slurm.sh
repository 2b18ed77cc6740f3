#!/usr/bin/env bash
# Trains as a Slurm job on one node: sets everything up here (the folder must be shared with the nodes), then
# submits. The job saves a checkpoint when Slurm stops it and puts itself back in the queue; a run continues
# from its newest checkpoint, so the same command also continues a run that has ended.
#
#   bash launch/slurm.sh [OPTION ...] --config FILE [ARGUMENT ...]
#
#   --gpus N           GPUs of the job, 0 for none                       (8)
#   --time TIME        longest time between two starts, Slurm's format   (24:00:00)
#   --cuda EXTRA       extra of setup.py to install: cuda or cuda12      (cuda; none with --gpus 0)
#   --sbatch OPTION    further option for sbatch, as --sbatch --partition=long; may be repeated
#   --dry-run          print the job instead of setting up and submitting it
#
# Everything else goes to the trainer.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
source launch/options.sh

gpus=8 time=24:00:00 extra=cuda dry_run=""
sbatch_options=() arguments=()
while (($#)); do
  case $1 in
    --gpus) gpus=$(whole "$@"); shift ;;
    --time) time=$(value "$@"); shift ;;
    --cuda) extra=$(value "$@"); shift ;;
    --sbatch) option=$(value "$@"); sbatch_options+=("$option"); shift ;;
    --dry-run) dry_run=yes ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
require_config "${arguments[@]}"
[[ $gpus == 0 ]] && extra=""

job() {
  printf '#!/usr/bin/env bash\n'
  printf '#SBATCH %s\n' --job-name=memocr --nodes=1 --ntasks=1 "--time=$time" --requeue \
    --signal=B:TERM@300 --open-mode=append --output=runs/slurm-%j.log "--chdir=$PWD"
  ((gpus == 0)) || printf '#SBATCH --gpus-per-node=%s\n' "$gpus"
  ((${#sbatch_options[@]} == 0)) || printf '#SBATCH %s\n' "${sbatch_options[@]}"
  printf '\nset -u\nbash launch/setup_env.sh %s || exit\n' "$extra"
  printf '.venv/bin/python -m memocr_jax.train %s&\n' "$(quoted "${arguments[@]}")"
  cat <<'JOB'
trainer=$!
# Slurm's signal reaches this shell alone; the trainer then saves and ends with 75, "start me again".
trap 'kill -TERM "$trainer"' TERM
wait "$trainer"
status=$?
if [ "$status" -gt 128 ]; then # the signal ended this wait, maybe not the trainer
  wait "$trainer"
  again=$?
  [ "$again" = 127 ] || status=$again
fi
if [ "$status" = 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
JOB
}

if [[ $dry_run ]]; then
  job
  exit
fi
command -v sbatch >/dev/null || fail "sbatch was not found: run this where jobs are submitted, or see --dry-run"
# shellcheck disable=SC2086  # no extra is no argument
bash launch/setup_env.sh $extra
mkdir -p runs
job | sbatch
