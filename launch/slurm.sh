#!/usr/bin/env bash
# Trains as a Slurm job, one process on each node with all its GPUs: submits a job that sets its nodes up (the
# folder must be shared with them) and trains. The job saves a checkpoint when Slurm stops it and puts itself
# back in the queue; a run continues from its newest checkpoint, so the same command also continues a run that
# has ended.
#
#   bash launch/slurm.sh [OPTION ...] --config FILE [ARGUMENT ...]
#
#   --nodes N          nodes of the job                                  (1)
#   --gpus N           GPUs of a node, 0 for none                        (8)
#   --cpus N           cores of a node: for XLA, and for Chromium        (8 for each GPU, at least 8)
#   --time TIME        longest time between two starts, Slurm's format   (24:00:00)
#   --cuda EXTRA       extra of setup.py to install: cuda or cuda12      (cuda; none with --gpus 0)
#   --model ID         Hugging Face model to download first, to models/NAME
#   --sbatch OPTION    further option for sbatch, as --sbatch --partition=long; may be repeated
#   --dry-run          print the job instead of setting up and submitting it
#
# Everything else goes to the trainer.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
source launch/options.sh

nodes=1 gpus=8 cpus="" time=24:00:00 extra=cuda model="" dry_run=""
sbatch_options=() arguments=()
while (($#)); do
  case $1 in
    --nodes) nodes=$(whole "$@"); shift ;;
    --gpus) gpus=$(whole "$@"); shift ;;
    --cpus) cpus=$(whole "$@"); shift ;;
    --time) time=$(value "$@"); shift ;;
    --cuda) extra=$(value "$@"); shift ;;
    --model) model=$(value "$@"); shift ;;
    --sbatch) option=$(value "$@"); sbatch_options+=("$option"); shift ;;
    --dry-run) dry_run=yes ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
require_config "${arguments[@]}"
[[ $gpus == 0 ]] && extra=""
[[ $cpus ]] || cpus=$((gpus > 1 ? 8 * gpus : 8))

job() {
  printf '#!/usr/bin/env bash\n'
  printf '#SBATCH %s\n' --job-name=memocr "--nodes=$nodes" --ntasks-per-node=1 "--cpus-per-task=$cpus" \
    "--time=$time" --requeue \
    --signal=B:TERM@300 --open-mode=append --output=runs/slurm-%j.log "--chdir=$PWD"
  ((gpus == 0)) || printf '#SBATCH --gpus-per-node=%s\n' "$gpus"
  ((${#sbatch_options[@]} == 0)) || printf '#SBATCH %s\n' "${sbatch_options[@]}"
  # Packages lie in the shared folder; Chromium is each node's own.
  printf '\nset -u\nsrun bash launch/setup_env.sh %s || exit\n' "$extra"
  [[ ! $model ]] || printf '%s || exit\n' "$(fetch_model "$model")"
  # A node that is lost takes the others along after --wait: they would wait for it.
  printf 'srun --cpu-bind=none --kill-on-bad-exit=0 --wait=300 %s&\n' \
    "$(quoted .venv/bin/python -m memocr_jax.train --processes.launcher slurm "${arguments[@]}")"
  cat <<'JOB'
trainer=$!
# Slurm's signal reaches this shell alone. The trainers get theirs by scancel (srun itself would kill them); they
# save and end with 75, "start me again".
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
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
mkdir -p runs
job | sbatch
