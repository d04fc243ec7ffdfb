#!/usr/bin/env bash
# Writes a report of runs in a Slurm job, by `distvae report`:
#   sbatch [sbatch option …] slurm/report.sh --out FOLDER RUN…
# from the checkout's folder. It is one process, on the job's first node. See docs/slurm.md.
#SBATCH --requeue
#SBATCH --open-mode=append
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

usage="slurm/report.sh --out FOLDER RUN…"
[[ ${1:-} == --out && -n ${2:-} ]] || fail "no folder to write to: $usage"
(($# > 2)) || fail "no run: $usage"
settle "$action" "$folder" "report:$(title "$2")"
out=$2
shift 2
runs=() # that have begun: one whose pretraining failed has not
for run; do
    [[ ! -f $run/config.yaml ]] || runs+=("$run")
done
((${#runs[@]})) || fail "none of these runs has begun: $*"

code=$folder/code
set +u # what a site calls in env.sh was seldom written for it
. "$code/slurm/env.sh"
set -u
# The copy is what runs: by its path, for `python3 -m` would look into the checkout first.
export PYTHONPATH=$PWD/$code${PYTHONPATH:+:$PYTHONPATH}
exec "${container[@]}" python3 "$code/distvae/cli.py" report --out "$out" "${runs[@]}"
