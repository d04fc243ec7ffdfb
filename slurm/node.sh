#!/usr/bin/env bash
# One node's part in a training job. srun runs this once on each node, with the arguments that all launchers share.
#   node.sh [option of accelerate launch …] PROGRAM [argument …]
# shellcheck disable=SC2031,SC2317  # job.sh reads env.sh in subshells; traps are called
set -euo pipefail

# Slurm announces the end of a job by signals. Usually they reach only the first process on each node, which is this one.
# It passes them on once the launcher has started.
asked=
trap 'asked=USR1' USR1
trap 'asked=TERM' TERM

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$code/slurm/job.sh"
. "$code/slurm/signals.sh"
enter_site "$code"
if [[ -z ${SLURM_GPUS_ON_NODE:-}${CUDA_VISIBLE_DEVICES:-} ]] && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    echo "distvae: WARNING ${SLURMD_NODENAME:-this node} has GPUs, but Slurm gave the job none: it trains on CPUs. Request GPUs" \
        "with --gpus-per-node=N, or where Slurm does not manage them, set CUDA_VISIBLE_DEVICES in slurm/env.sh" >&2
fi

# Where Slurm signals all processes, it would kill launchers, or have them give the training 30 s to end. So a launcher
# starts with these signals blocked. Its children inherit that. Each training process unblocks them once it can save, and
# then receives those that are pending.
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

# When this script fails, Slurm kills the other nodes' at once. The run's main process may be on another node: give it
# time to write its exit code.
if ((status)); then
    for ((i = 0; i < 25; i++)); do
        [[ ! -e $DISTVAE_EXIT_FILE ]] || break
        sleep 0.2
    done
fi
exit "$status"
