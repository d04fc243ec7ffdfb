#!/usr/bin/env bash
# Runs a sweep on the nodes of a Slurm job, however many there are and however unlike:
#   sbatch [sbatch option …] slurm/sweep.sh SWEEP [key=value …]
# from the checkout's folder. The nodes become a Ray cluster of the job's own, with the CPUs and GPUs that Slurm gave on
# each; the first runs launch/sweep.py, which has the trials run wherever there is room. See docs/slurm.md.
#
# The job may be started again, by Slurm or by itself, and adds to its log then. Two minutes before its time limit the
# trials are told to save and end. A lost node costs the job no more than that node, unless it is the first.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --no-kill
set -euo pipefail

# As in train.sh: in a job this file is a copy in Slurm's spool, and the rest lies in the job's copy of the code, or
# before there is one in the folder of submission.
case ${1:-} in
    --copy | --from) action=$1 folder=$2; shift 2 ;;
    *) action=both folder=runs/slurm/${SLURM_JOB_ID:-} ;;
esac
home=.
[[ ! -d $folder/code ]] || home=$folder/code
if [[ ! -f $home/slurm/job.sh ]]; then
    echo "distvae: $PWD is not a checkout of distvae; submit from its folder" >&2
    exit 2
fi
. "$home/slurm/job.sh"

usage="slurm/sweep.sh SWEEP [key=value …]"
[[ ${1:-} != -* ]] || fail "$1: no option of $usage; options of sbatch come before the job"
(($#)) || fail "no sweep: $usage"
sweep=$1
shift

# The training config that the sweep's file names is copied too.
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
[[ -n $address ]] || fail "$SLURMD_NODENAME: has no address that other nodes could reach"
address+=:$(free_port 0)
client=$(free_port 1)
dashboard=$(free_port 2)

# Who can reach Ray's ports can run anything as this user, but for the token.
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
