#!/usr/bin/env bash
# Writes a report of runs in a Slurm job with `distvae report`:
#   sbatch [sbatch option …] slurm/report.sh --out FOLDER [--probe] [--label=COLUMN,COLUMN] RUN…
# from the checkout's folder. This is one process on the job's first node. See docs/slurm.md.
#SBATCH --requeue
#SBATCH --open-mode=append
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

usage="slurm/report.sh --out FOLDER [--probe] [--label=COLUMN,COLUMN] RUN…"
[[ ${1:-} == --out && -n ${2:-} ]] || fail "no folder to write to: $usage"
[[ ${*: -1} != --* && $# -gt 2 ]] || fail "no run: $usage"
settle "$action" "$folder" "report:$(title "$2")"
out=$2 probes=()
shift 2
while [[ ${1:-} == --probe || ${1:-} == --label=* ]]; do
    probes+=("$1")
    shift
done
runs=() # leave out those that have not begun, because their pretraining failed
for run; do
    [[ ! -f $run/config.yaml ]] || runs+=("$run")
done
((${#runs[@]})) || fail "none of these runs has begun: $*"

code=$folder/code
enter_site "$PWD/$code"
# shellcheck disable=SC2031  # job.sh reads env.sh in subshells
# Not `python3 -m`, which would look into the checkout first.
exec "${container[@]}" python3 "$code/distvae/cli.py" report --out "$out" "${probes[@]}" "${runs[@]}"
