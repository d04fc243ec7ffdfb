#!/usr/bin/env bash
# One node's part in a job: srun runs this once on each node, with what all their launchers share.
#   node.sh GPUS [option of accelerate launch …] PROGRAM [argument …]
set -euo pipefail

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
set +u # what a site calls in env.sh was seldom written for it
. "$code/slurm/env.sh"
set -u

if [[ ${SLURM_GPUS_ON_NODE:-0} != "$1" ]]; then
    echo "distvae: $SLURMD_NODENAME has ${SLURM_GPUS_ON_NODE:-0} GPUs of this job and its first node $1; ask for as" \
        "many on each by --gpus-per-node=N" >&2
    exit 2
fi
shift

# The copy is what runs, even where distvae is installed from the checkout.
export PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH}
# What a process said before it was killed stands in the log.
export PYTHONUNBUFFERED=1
exec "${container[@]}" accelerate launch --machine_rank "$SLURM_NODEID" "$@"
