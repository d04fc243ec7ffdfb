#!/usr/bin/env bash
# Submits a job that runs from a copy of the code and its config as they are now:
#   bash slurm/submit.sh [sbatch option …] JOB [argument of slurm/JOB.sh …]
# from the checkout's folder. Write each sbatch option as one word (--nodes=2 or -N2, not --nodes 2), because the first
# word that is not an option is JOB. JOB and its arguments are one of
#   train [--engine NAME] [--processes-per-node N] CONFIG [key=value …]
#   sweep SWEEP [key=value …]
#   report --out FOLDER [--probe] [--label=COLUMN,COLUMN] RUN…
# The config and its settings are checked before the job is submitted. See docs/slurm.md.
set -euo pipefail

for word; do
    case $word in
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit ;;
    esac
done
if [[ ! -f slurm/job.sh ]]; then
    echo "distvae: $PWD has no slurm/job.sh; submit from a checkout or a folder of \`distvae init\`" >&2
    exit 2
fi
. slurm/job.sh

options=()
while [[ ${1:-} == -* ]]; do
    options+=("$1")
    shift
done
mapfile -t jobs < <(grep -l '^#SBATCH' slurm/*.sh)
(($#)) || fail "no job: slurm/submit.sh [sbatch option …] JOB [argument …]; JOB is one of: $(names "${jobs[@]}")"
name=$1
shift
[[ $name != *.y*ml ]] || fail "no job before $name: slurm/submit.sh [sbatch option …] JOB $name …; JOB is train or sweep"
[[ " $(names "${jobs[@]}") " == *" $name "* ]] ||
    fail "$name is not a job; write an sbatch option as one word (--nodes=2), and as JOB one of: $(names "${jobs[@]}")"

set +u
. slurm/env.sh
set -u
site=()
[[ -z $account ]] || site+=(--account="$account")
[[ -z $partition ]] || site+=(--partition="$partition")

folder=runs/slurm/$name-$(date +%Y%m%d-%H%M%S)-$$
title=$(bash "slurm/$name.sh" --copy "$folder" "$@")
# Comes first, so that the user's own --job-name takes precedence.
[[ -n ${SBATCH_JOB_NAME:-} ]] || site+=(--job-name="$title")
status=0
id=$(sbatch --parsable "${site[@]}" --output="${folder//%/%%}/%j.log" "${options[@]}" \
    "$folder/code/slurm/$name.sh" --from "$folder" "$@") || status=$?
if [[ -z $id ]]; then # Slurm refused the job, or only tested it
    rm -rf "$folder"
    exit "$status"
fi
echo "job $id"
echo "  $folder/code/           the code that it runs"
echo "  $folder/${id%%;*}.log   its log, which names the logs of its nodes"
exit "$status"
