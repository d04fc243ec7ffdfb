#!/usr/bin/env bash
# Trains a config on the nodes of a Slurm job, any number of them, with GPUs or CPUs:
#   sbatch [sbatch option …] slurm/train.sh [--engine NAME] [--processes-per-node N] CONFIG [key=value …]
# from the checkout's folder. Each node runs one launcher, which starts a process for each GPU that Slurm gave the job
# there. On a node without GPUs it starts one process with all CPUs of the job, or N processes. NAME is a file in
# launch/accelerate/. See docs/slurm.md.
#
# Slurm or the job itself may requeue the job, which then appends to its log. Two minutes before its time limit all nodes
# are asked to save and end.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
set -euo pipefail

# In a job this file is a copy in Slurm's spool. The other files are in the job's copy of the code, or before that exists
# in the folder of submission. submit.sh calls this with `--copy FOLDER` to make the copy, and submits it with
# `--from FOLDER`.
case ${1:-} in
    --copy | --from) action=$1 folder=$2; shift 2 ;;
    *) action=both folder=runs/slurm/${SLURM_JOB_ID:-} ;;
esac
home=.
[[ ! -d $folder/code ]] || home=$folder/code
if [[ ! -f $home/slurm/job.sh ]]; then
    echo "distvae: $PWD has no slurm/job.sh; submit from a checkout or a folder of \`distvae init\`" >&2
    exit 2
fi
. "$home/slurm/job.sh"

usage="slurm/train.sh [--engine NAME] [--processes-per-node N] CONFIG [key=value …]"
engine=multi_node
processes=
while [[ ${1:-} == -* ]]; do
    case $1 in
        --engine) engine=${2:-} ;;
        --processes-per-node) processes=${2:-} ;;
        *) fail "$1: no option of $usage; options of sbatch come before the job" ;;
    esac
    (($# > 1)) || fail "$1 needs a value: $usage"
    shift 2
done
[[ -f $home/launch/accelerate/$engine.yaml ]] ||
    fail "--engine $engine: no such file in launch/accelerate/, which holds $(names "$home"/launch/accelerate/*.yaml)"
[[ -z $processes || $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes-per-node $processes: should be a number from 1"
(($#)) || fail "no config: $usage"
config=$1
shift
[[ -e $folder/code ]] || check train "$config" "$@"
all_overrides kl.target_rate=6 "$@"
settle "$action" "$folder" "train:$(title "$config" "$@")" "$config"

code=$folder/code
config=$code/$(config_in_copy "$config")
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
find_gpus
count=${gpus[$head]}
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    ((gpus[$node] == count)) || fail "the job has ${gpus[$node]} GPUs on $node and $count on $head;" \
        "ask for the same number on each node with --gpus-per-node=N"
done
[[ -n $processes ]] || processes=$((count > 0 ? count : 1))
port=$(free_port 0)

echo "job $SLURM_JOB_ID: nodes $SLURM_JOB_NODELIST, on each GPUs: $count, processes: $processes; engine $engine;" \
    "they meet at $head:$port"
on_every_node "$folder" together bash "$code/slurm/node.sh" --config_file "$code/launch/accelerate/$engine.yaml" \
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes $((SLURM_JOB_NUM_NODES * processes)) \
    --main_process_ip "$head" --main_process_port "$port" "$code/distvae/train.py" "$config" "$@"
