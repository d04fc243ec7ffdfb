#!/usr/bin/env bash
# Runs a sweep on the nodes of a Slurm job, any number of them, which may differ:
#   sbatch [sbatch option …] slurm/sweep.sh SWEEP [key=value …]
# from the checkout's folder. The nodes form a Ray cluster with the CPUs and GPUs that Slurm gave the job on each. The
# first node runs launch/sweep.py, which starts trials wherever there is room. See docs/slurm.md.
#
# Slurm or the job itself may requeue the job, which then appends to its log. Two minutes before its time limit the trials
# are asked to save and end. The job continues when it loses a node, unless that is the first.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --no-kill
set -euo pipefail

# As in train.sh: in a job this file is a copy in Slurm's spool. The other files are in the job's copy of the code, or
# before that exists in the folder of submission.
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

usage="slurm/sweep.sh SWEEP [key=value …]"
[[ ${1:-} != -* ]] || fail "$1: no option of $usage; options of sbatch come before the job"
(($#)) || fail "no sweep: $usage"
sweep=$1
shift

# The copy also has the training config that the sweep file names.
file=$sweep
[[ $home == . ]] || file=$home/$(config_in_copy "$sweep")
readable "$file"
base=$(base_of "$file")
for override; do
    [[ $override != base=* ]] || base=${override#base=}
done
[[ -n $base ]] || fail "$sweep: names no training config by a line such as base: configs/own.yaml"
[[ -e $folder/code ]] || check sweep "$sweep" "$@"
all_overrides num_samples=20 "$@"
settle "$action" "$folder" "sweep:$(title "$sweep" "$@")" "$sweep" "$base"

code=$folder/code
address=$(own_address "$folder")
[[ -n $address ]] || fail "$SLURMD_NODENAME: has no address that other nodes can reach"
address+=:$(free_port 0)
client=$(free_port 1)
dashboard=$(free_port 2)

# Without a token, anyone who can reach Ray's ports could run anything as this user.
token=$PWD/$folder/token
trap 'rm -f "$token"' EXIT
rm -f "$token"
(umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
unset RAY_AUTH_TOKEN

find_gpus
echo "job $SLURM_JOB_ID: nodes $SLURM_JOB_NODELIST; Ray meets at $address"
echo "its dashboard: ssh -L 8265:localhost:$dashboard $(id -un)@$SLURMD_NODENAME; then http://localhost:8265, which asks for the" \
    "token in $token"
on_every_node "$folder" apart bash "$code/slurm/ray.sh" "$address" "$client" "$dashboard" \
    python3 "$code/launch/sweep.py" "$code/$(config_in_copy "$sweep")" "$@" "base=$code/$(config_in_copy "$base")"
