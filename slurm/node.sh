#!/usr/bin/env bash
# One node's part in a job: srun runs this once on each node, with what all their launchers share.
#   node.sh [option of accelerate launch …] PROGRAM [argument …]
# shellcheck disable=SC2317  # what a trap calls is reached
set -euo pipefail

# Slurm tells a job by signals that its end is near. Usually they reach only the first process of the job on each node,
# this one, which passes them on as soon as there is somebody to pass them on to.
asked=
trap 'asked=USR1' USR1
trap 'asked=TERM' TERM

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$code/slurm/signals.sh"
# A node may show its processes GPUs that the job was not given.
[[ -n ${SLURM_GPUS_ON_NODE:-} ]] || export CUDA_VISIBLE_DEVICES=
set +u # what a site calls in env.sh was seldom written for it
. "$code/slurm/env.sh"
set -u
if [[ -z ${SLURM_GPUS_ON_NODE:-}${CUDA_VISIBLE_DEVICES:-} ]] && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    echo "distvae: WARNING ${SLURMD_NODENAME:-this node} has GPUs, but Slurm gave the job none: it trains on CPUs. Ask for GPUs" \
        "with --gpus-per-node=N, or where Slurm does not manage them, set CUDA_VISIBLE_DEVICES in slurm/env.sh" >&2
fi

# The copy is what runs, even where distvae is installed from the checkout.
export PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH}
# What a process said before it was killed stands in the log.
export PYTHONUNBUFFERED=1

# Where a site has all processes told, launchers are too, which would die of it, or give the training 30 s. So a launcher
# starts with these signals blocked. What it starts inherits that, and each training process unblocks them once it can
# save, and gets then what has come before.
blocked='
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
os.execvp(sys.argv[1], sys.argv[1:])
'

"${container[@]}" python3 -c "$blocked" accelerate launch --machine_rank "$SLURM_NODEID" "$@" &
launcher=$!
trap 'pass_on USR1 "$launcher"' USR1
trap 'pass_on TERM "$launcher"' TERM
[[ -z $asked ]] || pass_on "$asked" "$launcher"
status=0
outwait "$launcher" || status=$?

# A node whose part ends badly has Slurm kill those of the others at once. The first process of all, on another node, may
# yet have to say how it ends.
if ((status)); then
    for ((i = 0; i < 25; i++)); do
        [[ ! -e $DISTVAE_EXIT_FILE ]] || break
        sleep 0.2
    done
fi
exit "$status"
