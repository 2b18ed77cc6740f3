#!/usr/bin/env bash
# Trains on Google Kubernetes Engine, or draws pages there: fills in a manifest of launch/gke/ and applies it.
#
#   bash launch/gke.sh tpu --topology v5e:16x16 --image IMAGE [OPTION ...] --config FILE --run.dir gs://... [...]
#   bash launch/gke.sh gpu --nodes 8 --image IMAGE [OPTION ...] --config FILE --run.dir gs://... [...]
#   bash launch/gke.sh render --image IMAGE [--replicas N]
#
#   --image IMAGE       built from the Dockerfile (EXTRA=tpu,gcs or cuda,gcs; none for render) and pushed
#   --topology T        TPU: v4, v5e, v5p or v6e and the slice's shape, as for compile_plan
#   --nodes N           GPU: nodes                                          (1)
#   --gpus N            GPU: GPUs of a node                                 (8)
#   --accelerator NAME  GPU: the node's label gke-accelerator               (nvidia-h100-80gb)
#   --replicas N        render: pods at most                                (32)
#   --spot              machines that may be taken away, for less money
#   --model ID          Hugging Face model that every pod downloads first, to models/NAME
#   --name NAME         of what is made                                     (memocr; memocr-render)
#   --dry-run           print the manifest instead of applying it
#
# Everything else goes to the trainer. Needs kubectl with a cluster that has JobSet, and node pools of that kind.
# Pods restart by themselves; `kubectl delete jobset NAME` ends a run, which the same command continues.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
source launch/options.sh

kind=${1:-}
case $kind in
  tpu | gpu) name=memocr ;;
  render) name=memocr-render ;;
  *) fail "the first argument is '$kind': it must be tpu, gpu or render" ;;
esac
shift
image="" topology="" nodes=1 gpus=8 accelerator=nvidia-h100-80gb replicas=32 spot="" model="" dry_run=""
arguments=()
while (($#)); do
  case $1 in
    --image) image=$(value "$@"); shift ;;
    --topology) topology=$(value "$@"); shift ;;
    --nodes) nodes=$(whole "$@"); shift ;;
    --gpus) gpus=$(whole "$@"); shift ;;
    --accelerator) accelerator=$(value "$@"); shift ;;
    --replicas) replicas=$(whole "$@"); shift ;;
    --spot) spot=yes ;;
    --model) model=$(value "$@"); shift ;;
    --name) name=$(value "$@"); shift ;;
    --dry-run) dry_run=yes ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
[[ $image ]] || fail "--image is missing: build the Dockerfile, push it, and name it"
[[ $kind == render ]] || require_config "${arguments[@]}"
[[ $kind != render || ${#arguments[@]} == 0 ]] || fail "${arguments[0]}: render takes no arguments of the trainer"

hosts=$nodes chips=$gpus
joined=(--processes.launcher flags --processes.coordinator "$name-trainer-0-0.$name:8476"
  --processes.count "$nodes" --processes.index "\$(PROCESS)")
if [[ $kind == tpu ]]; then
  [[ $topology =~ ^(v4|v5e|v5p|v6e):([0-9]+(x[0-9]+){1,2})$ ]] ||
    fail "--topology is '$topology': name chip and shape of a slice, as v5e:16x16 or v5p:2x4x4"
  declare -A labels=([v4]=tpu-v4-podslice [v5e]=tpu-v5-lite-podslice [v5p]=tpu-v5p-slice [v6e]=tpu-v6e-slice)
  accelerator=${labels[${BASH_REMATCH[1]}]} topology=${BASH_REMATCH[2]}
  count=$((${topology//x/*}))
  chips=$((count < 4 ? count : 4))
  hosts=$((count / chips))
  joined=(--processes.launcher gke_tpu)
fi

# Fills a word in capitals in; what it is replaced by may hold anything but a line's end.
fill() {
  local value=$2
  value=${value//\\/\\\\}
  value=${value//&/\\&}
  printf 's|%s|%s|g\n' "$1" "${value//|/\\|}"
}

manifest() {
  {
    [[ $model ]] || printf '/ # model$/d\n'
    [[ $spot ]] || printf '/ # spot$/d\n'
    printf '/^#/d\n'
    fill MODELNAME "${model##*/}"
    fill '\bMODEL\b' "$model"
    fill '\bNAME\b' "$name"
    fill '\bIMAGE\b' "$image"
    fill '\bHOSTS\b' "$hosts"
    fill '\bCHIPS\b' "$chips"
    fill '\bACCELERATOR\b' "$accelerator"
    fill '\bTOPOLOGY\b' "$topology"
    fill '\bREPLICAS\b' "$replicas"
    fill '\bARGUMENTS\b' "$(json_list "${joined[@]}" "${arguments[@]}")"
  } | sed -f /dev/stdin "launch/gke/$kind.yaml"
}

if [[ $dry_run ]]; then
  manifest
  exit
fi
command -v kubectl >/dev/null || fail "kubectl was not found: install it, or see --dry-run"
manifest | kubectl apply -f -
