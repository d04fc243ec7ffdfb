# shellcheck shell=bash
# What the batch scripts here share. Their working directory is the checkout.

fail() { # MESSAGE: bad input
    echo "distvae: $*" >&2
    exit 2
}

names() { # FILE…: their names without folder and ending
    local file all=()
    for file; do
        file=${file##*/}
        all+=("${file%.*}")
    done
    echo "${all[*]}"
}

title() { # PATH [key=value …]: what to call a job: after its run's folder if given, else after its config
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

site_python() ( # ARGUMENT…: Python with this folder's code, in the environment that env.sh sets up
    set +u
    # shellcheck source=slurm/env.sh
    . slurm/env.sh >/dev/null || exit
    # A job's launcher sets its own precision.
    env -u ACCELERATE_MIXED_PRECISION PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "${container[@]}" python3 "$@"
)

check() { # JOB CONFIG [key=value …]: refuse what the job would refuse once it runs; table1.sh does so once for all
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

all_overrides() { # EXAMPLE [WORD…]
    local word
    for word in "${@:2}"; do
        [[ $word == [!=-]*=* ]] || fail "'$word' is not an override; write key=value, such as $1; $order"
    done
}

order="options of sbatch come before the job, others before its config"

# -- The copy ----------------------------------------------------------------------------------------------------------

# A job runs from a copy of the code and of its configs, FOLDER/code: what is edited in the checkout does not reach a job
# that waits, runs or is requeued.

settle() { # ACTION FOLDER TITLE CONFIG…: make sure that the copy exists; --copy ends here, with the job's title
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
    take_copy "$@" # which a requeued job has already
}

take_copy() { # FOLDER CONFIG…
    local code=$1/code new=$1/code.new config place commit
    [[ ! -e $code ]] || return 0
    shift
    for config; do
        readable "$config"
    done
    rm -rf "$new"
    mkdir -p "$new"
    tar --create --exclude=__pycache__ distvae launch slurm setup.cfg pyproject.toml | tar --extract --directory "$new"
    for config; do
        place=$new/$(config_in_copy "$config")
        [[ ! -e $place ]] || { rm -rf "$new"; fail "$config: another config of the job has this name"; }
        mkdir -p "${place%/*}"
        cp "$config" "$place"
    done
    (($# == 0)) || copy_bases "$config" "$place" # of the last, the training config; the one before it may be a sweep
    # The copy has no .git beside it; this says which commit it is.
    if [[ -e .git ]] && commit=$(git describe --always --dirty --abbrev=40 --exclude='*'); then
        echo "$commit" >"$new/COMMIT"
    fi
    mv "$new" "$code"
}

copy_bases() { # CONFIG PLACE: copy what a training config is based on beside its copy, as .base1.yaml and so on
    local config=$1 place=$2 folder=${2%/*} base number
    for ((number = 1; number <= 100; number++)); do # a circle is refused by whoever reads it
        base=$(base_of "$config")
        [[ -n $base ]] || return 0
        [[ $base == /* ]] || base=$(dirname "$config")/$base
        readable "$base"
        sed -i -E "s/^base:.*/base: .base$number.yaml/" "$place"
        config=$base place=$folder/.base$number.yaml
        cp "$config" "$place"
    done
}

base_of() { # FILE: what its line `base: PATH` names
    sed -nE "s/^base:[[:space:]]+(['\"]?)([^#]*[^#[:space:]])\1[[:space:]]*(#.*)?$/\2/p" "$1"
}

readable() { # CONFIG
    [[ -f $1 && -r $1 ]] || fail "$1: cannot be read as a config: no such file"
}

config_in_copy() { # CONFIG: its place in a copy, below configs/ as in the checkout, for that path names the run
    local path=/$1
    case $path in
        */configs/*) echo "configs/${path##*/configs/}" ;;
        *) echo "configs/${path##*/}" ;;
    esac
}

# -- The nodes ---------------------------------------------------------------------------------------------------------

own_address() { # FOLDER: of this node, as others reach it
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

free_port() { # [NUMBER]: a port of this host that no other job chooses; each NUMBER is another
    local low high first last port try
    read -r low high </proc/sys/net/ipv4/ip_local_port_range
    read -r first last < <(ports_outside "$low" "$high")
    for ((try = 0; try < 100; try++)); do
        port=$((first + (SLURM_JOB_ID + 7481 * ${1:-0} + 499 * try) % (last - first + 1)))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break # nobody listens there
    done
    echo "$port"
}

ports_outside() { # LOW HIGH: the ports to choose from, when the kernel hands out LOW to HIGH to whoever connects
    local first=10240 last=65535 enough=1000
    if (($1 - first >= enough)); then
        last=$(($1 - 1))
    elif ((last - $2 >= enough)); then
        first=$(($2 + 1))
    fi # else there is no room outside: all of them
    echo "$first $last"
}

# Under --exclusive a job has all GPUs of its nodes, but a step that does not ask gets none of them, or as many as sbatch
# was asked for. So this counts by what the job was given, and its step asks for that.

declare -A gpus=()
find_gpus() { # set `gpus`: how many each of the job's nodes has for it, or fewer where --gpus-per-node or --gres says so
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

count_gpus() { # LIST: of generic resources, such as gpu:a100:2(IDX:0,3),shard:4 or gres:gpu:1
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

on_every_node() { # FOLDER BOND COMMAND…: run it once on each node, with all that the job has there
    local logs=$1/logs${SLURM_RESTART_COUNT:+-$SLURM_RESTART_COUNT} folder=$1 bond=$2 step=() status=0 said='' srun
    shift 2
    case $bond in
        together) step=(--kill-on-bad-exit=1) ;; # where one fails, all end
        apart) step=(--kill-on-bad-exit=0 --no-kill --wait=0) ;; # what the first node does is what counts
    esac
    local counts count sum=0
    mapfile -t counts < <(printf '%s\n' "${gpus[@]}" | sort -nu)
    for count in "${gpus[@]}"; do
        sum=$((sum + count))
    done
    if ((sum && ${#counts[@]} == 1)); then
        step+=(--gpus-per-node="${counts[0]}")
    elif ((sum)); then
        # No step of Slurm has GPUs on some of its nodes and none on others.
        ((counts[0])) || fail "some nodes of the job have GPUs for it and some have none; ask for them with --gpus-per-node=N"
        step+=(--gpus="$sum")
    fi
    mkdir -p "$logs"
    echo "a log of each node: $logs/"
    # Where the run's main process leaves its exit code, which launchers hide. Each start of a job has its own.
    export DISTVAE_EXIT_FILE=$logs/exit
    rm -f "$DISTVAE_EXIT_FILE"
    # Left alone, srun would apply to its one task a node what sbatch was told about tasks, CPUs and GPUs. Told nothing of
    # that, a step has all CPUs of the job.
    env -u SLURM_CPUS_PER_TASK -u SLURM_TRES_PER_TASK -u SLURM_GPUS -u SLURM_GPUS_PER_NODE -u SLURM_GPUS_PER_SOCKET \
        -u SLURM_GPUS_PER_TASK -u SLURM_NTASKS_PER_GPU \
        srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
        --ntasks-per-node=1 --cpu-bind=none --mpi=none "${step[@]}" --export=ALL --input=none --output="${logs//%/%%}/%N.log" \
        "$@" &
    srun=$!
    # The nodes are told by themselves when an end is near. This script is too, and outlives it to see how they end.
    trap : TERM
    trap 'kill -s USR1 "$srun"' USR1 # by --signal=B:USR1, which tells the script alone: srun passes it on
    while wait "$srun"; kill -0 "$srun" 2>/dev/null; do :; done # a signal ends a wait, not srun
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

# The exit code of a run that can go on (INTERRUPTED in distvae/system/signals.py).
interrupted=75

come_back() { # FOLDER: have Slurm start this job again, whose run was interrupted; ends the script in any case
    local id=$SLURM_JOB_ID starts=${SLURM_RESTART_COUNT:-0} most job try
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    # shellcheck source=slurm/env.sh
    most=$(set +u; . "$1/code/slurm/env.sh" >/dev/null; echo "${max_requeues:-100}")
    trap - TERM # now it should end this script
    for ((try = 0; try < 60; try++)); do # while Slurm's controller may be down
        if job=$(scontrol --oneliner show job "$id"); then
            # Slurm, if asked, would start a cancelled job again too. And a node that Slurm took for dead may run this
            # script on while the job has started elsewhere.
            if [[ $job != *" JobState=RUNNING "* || $job != *" Restarts=$starts "* ]]; then
                echo "the run was interrupted; the job was cancelled, or Slurm starts it again by itself"
            elif [[ $job != *" Requeue=1 "* ]]; then
                echo "the run was interrupted; the job may not be requeued (--no-requeue); rerun the same command to resume" >&2
            elif ((starts >= most)); then
                echo "distvae: the run was interrupted; the job has been requeued $starts times, no more are allowed (max_requeues in" \
                    "slurm/env.sh); rerun the same command to resume" >&2
            else
                echo "the run was interrupted; the job is requeued, time $((starts + 1)) of at most $most"
                scontrol requeue "$id" && sleep 600 # until Slurm ends this script, for an end of its own would count
            fi
            break
        fi
        sleep 5
    done
    exit "$interrupted"
}

show_failure() { # LOGS: print why the job failed, then the traceback, from the log of the node that failed first
    local log found='' reason=''
    # A rank that dies takes the others with it. What they and the launchers print about that is not the cause: that is an
    # error of another kind, or else lies with a node that was not dragged along (a process killed, say, by the kernel).
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
    echo "distvae: failed without a reason of its own; the last lines of $found:"
    tail -n 100 "$found"
} >&2

dragged='closed by peer|reset by peer|remote process exited|got 0 bytes|Broken pipe|SignalException'

why() { # KIND LOG: the first error in a log that is a cause: a user error's line, or an exception's and its traceback
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
