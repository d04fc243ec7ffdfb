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

# -- The copy ----------------------------------------------------------------------------------------------------------

# A job runs from a copy of the code and of its configs, FOLDER/code: what is edited in the checkout does not reach a job
# that waits, runs or is requeued.

settle() { # ACTION FOLDER CONFIG…: see that the copy is there, and stop where that was all
    local action=$1
    shift
    case $action in
        --copy) take_copy "$@"; exit ;;
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
    # The copy has no .git beside it; this says which commit it is.
    if [[ -e .git ]] && commit=$(git describe --always --dirty --abbrev=40 --exclude='*'); then
        echo "$commit" >"$new/COMMIT"
    fi
    mv "$new" "$code"
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

on_every_node() { # FOLDER BOND COMMAND…: run it once on each node, with all that the job has there
    local logs=$1/logs${SLURM_RESTART_COUNT:+-$SLURM_RESTART_COUNT} folder=$1 bond=$2 step=() status=0 said='' srun
    shift 2
    case $bond in
        together) step=(--kill-on-bad-exit=1) ;; # where one fails, all end
        apart) step=(--kill-on-bad-exit=0 --no-kill --wait=0) ;; # what the first node does is what counts
    esac
    mkdir -p "$logs"
    echo "a log of each node: $logs/"
    # Where the run's main process leaves its exit code, which launchers hide. Each start of a job has its own.
    export DISTVAE_EXIT_FILE=$logs/exit
    rm -f "$DISTVAE_EXIT_FILE"
    # Left alone, srun would take what sbatch was told of tasks, their CPUs and GPUs, for its own one task a node. Told
    # nothing of that, a step has all CPUs and GPUs of the job.
    [[ -z ${SLURM_GPUS_PER_TASK:-} ]] || step+=(--gpus-per-node="$SLURM_GPUS_ON_NODE")
    env -u SLURM_CPUS_PER_TASK -u SLURM_GPUS_PER_TASK -u SLURM_NTASKS_PER_GPU -u SLURM_TRES_PER_TASK \
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

# The exit code of a run that can go on (INTERRUPTED in distvae/interruption.py).
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
                echo "the run was interrupted; the job may not be requeued (--no-requeue), but the same command goes on" >&2
            elif ((starts >= most)); then
                echo "distvae: the run was interrupted; the job has been requeued $starts times, no more are allowed (max_requeues in" \
                    "slurm/env.sh); the same command goes on" >&2
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

show_failure() { # LOGS: the log that tells the cause, from its first traceback on
    local log found='' \
        error='^(\[rank[0-9]+\]: )?([A-Za-z_]+\.)*[A-Za-z_]*(Error|Exception|Interrupt)(:|$)|^distvae: ' \
        launcher='(ChildFailed|CalledProcess)Error' \
        dragged='closed by peer|reset by peer|remote process exited|got 0 bytes|Broken pipe|SignalException'
    # A rank that dies takes the others with it; what they and the launchers say of that is not the cause. It is an
    # error of another kind, or else lies with a node that was not dragged along (a process killed, say, by the kernel).
    for log in "$1"/*.log; do
        [[ -e $log ]] || return 0
        if grep -E "$error" "$log" | grep -qvE "$launcher|$dragged"; then
            found=$log
            break
        fi
        [[ -n $found ]] || grep -qE "$dragged" "$log" || found=$log
    done
    : "${found:=$log}"
    {
        echo "failed; from $found:"
        awk '/Traceback|^distvae: /{on = 1} on && shown++ < 100' "$found" | grep . || tail -n 100 "$found"
    } >&2
}
