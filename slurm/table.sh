#!/usr/bin/env bash
# Trains every row of a table in Slurm jobs, followed by a job that writes a report of them:
#   bash slurm/table.sh [sbatch option …] [--rows FOLDER] [--corpus FILE] [--epochs N] [--folder FOLDER] [--seeds S,S,…]
#       [--probe] [--label COLUMN,COLUMN] [key=value …]
# from the checkout's folder. --rows to --label and key=value are those of launch/table.py, which plans the runs.
# Any other option is one of sbatch's, for all jobs; write it as one word (--gpus-per-node=1).
#
# Each run is a job of slurm/train.sh, which waits for the run whose pretraining it uses. Rerun the same command to resume:
# runs that have finished or are in the queue are not submitted again. See docs/slurm.md.
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

usage="slurm/table.sh [sbatch option …] [--rows FOLDER] [--corpus FILE] [--epochs N] [--folder FOLDER] [--seeds S,S,…] [--probe] [--label COLUMN,COLUMN] [key=value …]"
options=() table=() probes=()
while (($#)); do
    case $1 in
        --rows | --corpus | --epochs | --folder | --seeds)
            (($# > 1)) || fail "$1 needs a value: $usage"
            table+=("$1=$2")
            shift ;;
        --label)
            (($# > 1)) || fail "$1 needs a value: $usage"
            probes+=("$1=$2")
            shift ;;
        --probe | --label=*) probes+=("$1") ;;
        --rows=* | --corpus=* | --epochs=* | --folder=* | --seeds=*) table+=("$1") ;;
        --dependency* | -d* | --job-name* | -J* | --comment* | --array* | -a* | --clusters* | -M* | --wait | -W | --test-only)
            fail "$1: cannot be given here, where each run is a job with a name, comment and dependency of its own" ;;
        -*) options+=("$1") ;;
        [!=]*=*) table+=("$1") ;;
        *) fail "'$1': write an sbatch option as one word (--nodes=2), and an override as key=value: $usage" ;;
    esac
    shift
done

stop() { # WHY
    local others="no job was submitted"
    ((${#submitted[@]} == 0)) || others="submitted before it, and left to run: ${submitted[*]}"
    echo "distvae: $1; $others; rerun the same command to resume" >&2
    exit 1
}

submit() { # TITLE FOLDER AFTER [sbatch option …] JOB WORD…: submit a job unless it is in the queue; set `id` to its number
    local title=$1 place state said order=()
    place=$(realpath -m -- "$2")
    read -r id state _ <<<"${queued[$place]:-}"
    if [[ -n $id ]]; then
        [[ $state != COMPLETING ]] || stop "$title: its job $id is ending; wait until it has left the queue"
        echo "$title: job $id, in the queue"
    else
        [[ -z $3 ]] || order=(--dependency="$3" --kill-on-invalid-dep=yes)
        if ! said=$(bash slurm/submit.sh "${options[@]}" --comment="$place" "${order[@]}" "${@:4}") ||
            [[ ! $said =~ (^|$'\n')"job "([0-9]+) ]]; then
            stop "$title: could not be submitted"
        fi
        id=${BASH_REMATCH[2]}
        submitted+=("$id")
        echo "$title: job $id${3:+, $3}"
    fi
    all+=("$id")
}

# A job's comment is the folder of its run, by which it is found again. Read the queue before making the plan, so that the
# plan has a run as finished if it ends in between.
declare -A queued=() jobs=()
queue=$(squeue --user="$(id -un)" --noheader --format="%A|%T|%r|%k")
while IFS='|' read -r id state reason place; do
    # A job that waits for one that failed does not count: Slurm is about to cancel it.
    [[ -z $place || $reason == DependencyNeverSatisfied ]] || queued[$place]+="$id $state "
done <<<"$queue"
unset DISTVAE_CHECKED
lines=$(site_python launch/table.py --plan "${table[@]}" "${probes[@]}")
mapfile -t lines <<<"$lines"

submitted=() all=() runs=()
for line in "${lines[@]}"; do
    # The run's name, the run that it waits for, its config, key=value …
    mapfile -d '' -t words < <(xargs printf '%s\0' <<<"$line")
    title=${words[0]} after=${words[1]}
    words=("${words[@]:2}")
    for word in "${words[@]}"; do
        [[ $word != run=* ]] || run=${word#run=}
    done
    runs+=("$run")
    case $after in
        finished) echo "$title: finished"; continue ;;
        -) after= ;;
        *) after=afterok:${jobs[$after]} ;;
    esac
    # The plan has checked everything but the data, which is the same in every row.
    [[ -n ${DISTVAE_CHECKED:-} ]] || check train "${words[@]}"
    export DISTVAE_CHECKED=yes
    submit "$title" "$run" "$after" --job-name="table:${title##*/}:${title%/*}" train "${words[@]}"
    jobs[$title]=$id
done

folder=${run%"/$title"}
report=$(realpath -m -- "$folder/report")
if ((${#submitted[@]})); then
    # Have the report wait for those in the queue too, which wait for fewer jobs.
    while read -r id _; do
        [[ -z $id ]] || all+=("$id")
    done < <(xargs -n 2 <<<"${queued[$report]:-}")
    queued=()
fi
after=$(IFS=:; echo "${all[*]}")
submit report "$report" "${after:+afterany:$after}" --nodes=1 report --out "$folder" "${probes[@]}" "${runs[@]}"
