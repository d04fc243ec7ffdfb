# shellcheck shell=bash
# Functions that the scripts share. The working directory is the checkout, or a folder of `distvae init`.

fail() { # MESSAGE: end because of bad input
    echo "distvae: $*" >&2
    exit 2
}

names() { # FILE…: print their names without folder and suffix
    local file all=()
    for file; do
        file=${file##*/}
        all+=("${file%.*}")
    done
    echo "${all[*]}"
}

title() { # PATH [key=value …]: print a job's title: the name of its run=FOLDER, otherwise that of its config
    local word name=$1
    name=${name%.y*ml}
    for word in "${@:2}"; do
        [[ $word != run=?* ]] || name=${word#run=}
    done
    while [[ $name == */ ]]; do name=${name%/}; done
    name=${name##*/}
    echo "${name//[^[:alnum:]._-]/_}"
}

# -- Checks ------------------------------------------------------------------------------------------------------------

site_python() ( # ARGUMENT…: run Python with this folder's code, in the environment that env.sh sets up
    set +u
    # shellcheck source=slurm/env.sh
    . slurm/env.sh >/dev/null || exit
    # The job's launcher sets its own precision.
    env -u ACCELERATE_MIXED_PRECISION PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "${container[@]}" python3 "$@"
)

check() { # JOB CONFIG [key=value …]: refuse input that the job would refuse; table.sh checks once for all its jobs
    local said lines status=0
    [[ -z ${DISTVAE_CHECKED:-} ]] || return 0
    said=$(site_python slurm/check.py "$@" 2>&1) || status=$?
    lines=$(grep '^distvae: ' <<<"$said") || :
    if ((status == 2)) && [[ -n $lines ]]; then
        echo "$lines" >&2
        exit 2
    elif ((status)); then
        lines="distvae: WARNING the config was not checked, because distvae does not run here (${said##*$'\n'});"
        lines+=" the job checks it when it starts"
    fi
    [[ -z $lines ]] || echo "$lines" >&2
}

all_overrides() { # EXAMPLE [WORD…]: refuse words that are not key=value
    local word
    for word in "${@:2}"; do
        [[ $word == [!=-]*=* ]] || fail "'$word' is not an override; write key=value, such as $1; $order"
    done
}

order="options of sbatch come before the job, others before its config"

# -- The copy ----------------------------------------------------------------------------------------------------------

# A job runs from a copy of the code and of its configs, FOLDER/code, so that edits of the checkout do not affect a job
# that waits, runs or is requeued.

settle() { # ACTION FOLDER TITLE CONFIG…: ensure that the copy exists; --copy prints the job's title and ends
    local action=$1 folder=$2 title=$3
    shift 3
    set -- "$folder" "$@"
    case $action in
        --copy) take_copy "$@"; echo "$title"; exit ;;
        --from) return ;;
    esac
    [[ -n ${SLURM_JOB_ID:-} ]] || fail "this is a job for Slurm: submit it by sbatch or slurm/submit.sh"
    if ((${SLURM_RESTART_COUNT:-0} == 0)) && [[ -e $1 ]]; then
        fail "$1 is there already, of an earlier job with this number; move it away"
    fi
    take_copy "$@" # does nothing in a requeued job
}

take_copy() { # FOLDER CONFIG…: copy the code and configs, unless the copy exists
    local code=$1/code new=$1/code.new config place commit
    [[ ! -e $code ]] || return 0
    shift
    for config; do
        readable "$config"
    done
    rm -rf "$new"
    mkdir -p "$new"
    tar --create --exclude=__pycache__ launch slurm | tar --extract --directory "$new"
    if [[ -d distvae ]]; then
        tar --create --exclude=__pycache__ distvae setup.cfg pyproject.toml | tar --extract --directory "$new"
    else # a folder of `distvae init`
        site_python -c "$copy_package" "$new/distvae" ||
            { rm -rf "$new"; fail "distvae is not installed where slurm/env.sh finds Python"; }
    fi
    for config; do
        place=$new/$(config_in_copy "$config")
        [[ ! -e $place ]] || { rm -rf "$new"; fail "$config: another config of the job has this name"; }
        mkdir -p "${place%/*}"
        cp "$config" "$place"
    done
    (($# == 0)) || copy_bases "$config" "$place" # of the last config, the training config; one before it is a sweep
    # Record the commit, because the copy has no .git.
    if [[ -d distvae && -e .git ]] && commit=$(git describe --always --dirty --abbrev=40 --exclude='*'); then
        echo "$commit" >"$new/COMMIT"
    fi
    mv "$new" "$code"
}

copy_package='
import os, shutil, sys
import distvae
shutil.copytree(os.path.dirname(distvae.__file__), sys.argv[1], ignore=shutil.ignore_patterns("__pycache__"))
'

copy_bases() { # CONFIG PLACE: copy the bases of a training config beside its copy, as .base1.yaml and so on
    local config=$1 place=$2 folder=${2%/*} base number
    for ((number = 1; number <= 100; number++)); do # whoever reads a circle refuses it
        base=$(base_of "$config")
        [[ -n $base ]] || return 0
        [[ $base == /* ]] || base=$(dirname "$config")/$base
        readable "$base"
        sed -i -E "s/^base:.*/base: .base$number.yaml/" "$place"
        config=$base place=$folder/.base$number.yaml
        cp "$config" "$place"
    done
}

base_of() { # FILE: print the PATH of its line `base: PATH`
    sed -nE "s/^base:[[:space:]]+(['\"]?)([^#]*[^#[:space:]])\1[[:space:]]*(#.*)?$/\2/p" "$1"
}

readable() { # CONFIG: refuse a missing file
    [[ -f $1 && -r $1 ]] || fail "$1: cannot be read as a config: no such file"
}

config_in_copy() { # CONFIG: print its path in a copy, below configs/ as in the checkout, because the path names the run
    local path=/$1
    case $path in
        */configs/*) echo "configs/${path##*/configs/}" ;;
        *) echo "configs/${path##*/}" ;;
    esac
}

# -- The nodes ---------------------------------------------------------------------------------------------------------

enter_site() { # CODE: set up this node for the job's programs, which run from the copy of the code
    # A node may show processes GPUs that the job was not given.
    [[ -n ${SLURM_GPUS_ON_NODE:-} ]] || export CUDA_VISIBLE_DEVICES=
    set +u # commands in env.sh may expand unset variables
    # shellcheck source=slurm/env.sh
    . "$1/slurm/env.sh"
    set -u
    # The copy takes precedence, even if distvae is installed from the checkout.
    export PYTHONPATH=$1${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
}

own_address() { # FOLDER: print the address by which other nodes reach this one
    local interface found
    # shellcheck source=slurm/env.sh
    interface=$(set +u; . "$1/code/slurm/env.sh" >/dev/null; echo "${GLOO_SOCKET_IFNAME:-${NCCL_SOCKET_IFNAME:-}}")
    found=$(
        {
            [[ -z $interface ]] || ip -4 -oneline address show dev "$interface" | sed -E 's|.* inet ([^/]+)/.*|\1|'
            getent ahostsv4 "$SLURMD_NODENAME" | cut -d' ' -f1
            hostname --all-ip-addresses | tr ' ' '\n'
        } 2>/dev/null | grep -v '^127\.' || :
    )
    echo "${found%%$'\n'*}"
}

free_port() { # [NUMBER]: print a port of this host that no other job chooses, a different one for each NUMBER
    local low high first last port try
    read -r low high </proc/sys/net/ipv4/ip_local_port_range
    read -r first last < <(ports_outside "$low" "$high")
    for ((try = 0; try < 100; try++)); do
        port=$((first + (SLURM_JOB_ID + 7481 * ${1:-0} + 499 * try) % (last - first + 1)))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break # nobody listens there
    done
    echo "$port"
}

ports_outside() { # LOW HIGH: print the range to choose ports from; the kernel assigns LOW to HIGH to connections
    local first=10240 last=65535 enough=1000
    if (($1 - first >= enough)); then
        last=$(($1 - 1))
    elif ((last - $2 >= enough)); then
        first=$(($2 + 1))
    fi # otherwise too few are outside: use all
    echo "$first $last"
}

# With --exclusive a job has all GPUs of its nodes, but a step gets only those that it requests, or as many as sbatch
# requested. So count the GPUs that the job was given, and have the step request them.

declare -A gpus=()
find_gpus() { # set `gpus`: the number that the job has on each node, limited by --gpus-per-node or --gres
    local shown asked='' line node try
    for ((try = 1; ; try++)); do # while Slurm's controller may be down
        ! shown=$(scontrol --details show job "$SLURM_JOB_ID") || break
        ((try < 12)) || fail "Slurm does not say what job $SLURM_JOB_ID was given: scontrol show job fails"
        sleep 5
    done
    [[ ! $shown =~ TresPerNode=([^[:space:]]*gpu[^[:space:]]*) ]] || asked=$(count_gpus "${BASH_REMATCH[1]}")
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        gpus[$node]=0
    done
    while read -r line; do
        [[ $line =~ ^Nodes=([^ ]+)\ .*\ GRES=([^ ]*gpu[^ ]*) ]] || continue
        for node in $(scontrol show hostnames "${BASH_REMATCH[1]}"); do
            gpus[$node]=${asked:-$(count_gpus "${BASH_REMATCH[2]}")}
        done
    done <<<"$shown"
}

count_gpus() { # LIST: count GPUs among generic resources, such as gpu:a100:2(IDX:0,3),shard:4 or gres:gpu:1
    local part parts sum=0
    # shellcheck disable=SC2001
    IFS=, read -ra parts < <(sed 's/([^)]*)//g' <<<"$1")
    for part in "${parts[@]}"; do
        if [[ $part =~ ^(gres[:/])?gpu(:[^:]*[^:0-9][^:]*)?(:([0-9]+))?$ ]]; then
            sum=$((sum + ${BASH_REMATCH[4]:-1}))
        fi
    done
    echo "$sum"
}

on_every_node() { # FOLDER BOND COMMAND…: run it once on each node, with all the job's resources there
    local logs=$1/logs${SLURM_RESTART_COUNT:+-$SLURM_RESTART_COUNT} folder=$1 bond=$2 step=() status=0 said='' srun
    shift 2
    case $bond in
        together) step=(--kill-on-bad-exit=1) ;; # if one fails, all end
        apart) step=(--kill-on-bad-exit=0 --no-kill --wait=0) ;; # only the first node counts
    esac
    local counts count sum=0
    mapfile -t counts < <(printf '%s\n' "${gpus[@]}" | sort -nu)
    for count in "${gpus[@]}"; do
        sum=$((sum + count))
    done
    if ((sum && ${#counts[@]} == 1)); then
        step+=(--gpus-per-node="${counts[0]}")
    elif ((sum)); then
        # A Slurm step cannot have GPUs on some of its nodes and none on others.
        ((counts[0])) || fail "some nodes of the job have GPUs for it and some have none; ask for them with --gpus-per-node=N"
        step+=(--gpus="$sum")
    fi
    mkdir -p "$logs"
    echo "a log of each node: $logs/"
    # The run's main process writes its exit code here, because launchers hide it. Each start of a job has its own file.
    export DISTVAE_EXIT_FILE=$logs/exit
    rm -f "$DISTVAE_EXIT_FILE"
    # Otherwise srun would apply the tasks, CPUs and GPUs requested of sbatch to its one task per node. Without these
    # variables a step has all CPUs of the job.
    env -u SLURM_CPUS_PER_TASK -u SLURM_TRES_PER_TASK -u SLURM_GPUS -u SLURM_GPUS_PER_NODE -u SLURM_GPUS_PER_SOCKET \
        -u SLURM_GPUS_PER_TASK -u SLURM_NTASKS_PER_GPU \
        srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
        --ntasks-per-node=1 --cpu-bind=none --mpi=none "${step[@]}" --export=ALL --input=none --output="${logs//%/%%}/%N.log" \
        "$@" &
    srun=$!
    # Slurm signals the nodes itself before the job ends. It signals this script too, which stays to see how they end.
    trap : TERM
    trap 'kill -s USR1 "$srun"' USR1 # with --signal=B:USR1 Slurm signals only this script; srun passes it on
    while wait "$srun"; kill -0 "$srun" 2>/dev/null; do :; done # a signal ends `wait`, not srun
    wait "$srun" || status=$?
    [[ ! -e $DISTVAE_EXIT_FILE ]] || said=$(<"$DISTVAE_EXIT_FILE")
    [[ $bond == together || -z $said ]] || status=$said
    ((status)) || return 0
    if [[ $said == "$interrupted" ]]; then
        come_back "$folder"
    fi
    show_failure "$logs"
    return "$status"
}

# The exit code of a run that can be resumed (INTERRUPTED in distvae/system/signals.py).
interrupted=75

come_back() { # FOLDER: requeue this job, whose run was interrupted; always ends the script
    local id=$SLURM_JOB_ID starts=${SLURM_RESTART_COUNT:-0} most job try
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    # shellcheck source=slurm/env.sh
    most=$(set +u; . "$1/code/slurm/env.sh" >/dev/null; echo "${max_requeues:-100}")
    trap - TERM # from now on TERM ends this script
    for ((try = 0; try < 60; try++)); do # while Slurm's controller may be down
        if job=$(scontrol --oneliner show job "$id"); then
            # Slurm would even requeue a cancelled job. And if Slurm took this node for dead, the job may have started
            # elsewhere while this script still runs.
            if [[ $job != *" JobState=RUNNING "* || $job != *" Restarts=$starts "* ]]; then
                echo "the run was interrupted; the job was cancelled, or Slurm starts it again by itself"
            elif [[ $job != *" Requeue=1 "* ]]; then
                echo "the run was interrupted; the job may not be requeued (--no-requeue); rerun the same command to resume" >&2
            elif ((starts >= most)); then
                echo "distvae: the run was interrupted; the job has been requeued $starts times, no more are allowed (max_requeues in" \
                    "slurm/env.sh); rerun the same command to resume" >&2
            else
                echo "the run was interrupted; the job is requeued, time $((starts + 1)) of at most $most"
                scontrol requeue "$id" && sleep 600 # until Slurm ends this script; if it ended first, the job would count as failed
            fi
            break
        fi
        sleep 5
    done
    exit "$interrupted"
}

show_failure() { # LOGS: print why the job failed and the traceback, from the log of the node that failed first
    local log found='' reason=''
    # A rank that dies takes the others with it. Their messages about lost connections are not the cause. The cause is an
    # error of another kind, or is on a node without such messages (for example a process that the kernel killed).
    for kind in line traceback; do
        for log in "$1"/*.log; do
            [[ -e $log ]] || return 0
            reason=$(why "$kind" "$log")
            [[ -z $reason ]] || { found=$log; break 2; }
        done
    done
    if [[ -n $reason ]]; then
        echo "${reason%%$'\n'*}"
        echo "(from $found)"
        [[ $reason != *$'\n'* ]] || echo "${reason#*$'\n'}"
        return
    fi
    for log in "$1"/*.log; do
        [[ -n $found ]] || grep -qE "$dragged" "$log" || found=$log
    done
    : "${found:=$log}"
    echo "distvae: failed without an error message; the last lines of $found:"
    tail -n 100 "$found"
} >&2

dragged='closed by peer|reset by peer|remote process exited|got 0 bytes|Broken pipe|SignalException'

why() { # KIND LOG: print the first error that is a cause: the line of a user error, or an exception and its traceback
    local launcher='(ChildFailed|CalledProcess)Error' exception='^([A-Za-z_]+[.])*[A-Za-z_]*(Error|Exception|Interrupt)(:|$)'
    awk -v kind="$1" -v dragged="$launcher|$dragged" -v exception="$exception" '
        { line = $0; sub(/^\[rank[0-9]+\]: ?/, "", line); lines[NR] = line }
        line ~ dragged && line !~ /^ / { trace = 0; held = ""; next }
        kind == "line" && line ~ /^distvae: / && line !~ /^distvae: WARNING/ { print line; exit }
        kind == "line" { next }
        found && (line ~ /^[EW][0-9]+ .*torch\/distributed/ || NR - found > 100) { exit }
        found && (line ~ /^Traceback / || (held && line ~ /^ /)) { held = held line "\n"; next }
        found { printf "%s%s\n", held, line; held = ""; next }
        line ~ /^Traceback \(most recent call last\):/ { if (!trace) trace = NR; next }
        (trace && line ~ /^[A-Za-z_][A-Za-z_0-9.]*(: |$)/) || line ~ exception {
            found = trace ? trace : NR
            print "distvae: failed: " line
            for (i = found; i <= NR; i++) print lines[i]
        }
    ' "$2"
}
