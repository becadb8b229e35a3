#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [train.py's flags]
# As variables: GPUS in all, GPUS_PER_NODE (0 on nodes without), CPUS_PER_TASK, SRUN_ARGS (more of srun's flags)
set -euo pipefail

PARTITION=$1
JOB_NAME=$2
CONFIG=$3
WORK_DIR=$4
TOOLS=$(dirname "$0")
export PYTHONPATH=$TOOLS/..:${PYTHONPATH:-} # a checkout need not be installed

PER_NODE=()
if [ "${GPUS_PER_NODE:=8}" != 0 ]; then
    PER_NODE=(--gres="gpu:$GPUS_PER_NODE" --ntasks-per-node="$GPUS_PER_NODE")
fi

# shellcheck disable=SC2086  # SRUN_ARGS are words
srun -p "$PARTITION" \
    --job-name="$JOB_NAME" \
    "${PER_NODE[@]}" \
    --ntasks="${GPUS:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$TOOLS/train.py" "$CONFIG" --work-dir="$WORK_DIR" --launcher=slurm "${@:5}"
