#!/usr/bin/env bash
# One node's part in a sweep job. srun runs this once on each node.
#   ray.sh HEAD:PORT CLIENT DASHBOARD COMMAND…
# The first node starts a Ray cluster at HEAD:PORT and runs COMMAND once the other nodes have joined. When COMMAND ends, so
# does the cluster on all nodes. CLIENT and DASHBOARD are ports of the first node.
# shellcheck disable=SC2031,SC2046,SC2153,SC2317  # job.sh reads env.sh in subshells; numbers need no quotes; traps are called
set -euo pipefail

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$code/slurm/job.sh"
. "$code/slurm/signals.sh"
enter_site "$code"

address=$1 client=$2 dashboard=$3
shift 3
first=
((SLURM_NODEID)) || first=yes

unset RAY_ADDRESS
export RAY_worker_niceness=${RAY_worker_niceness:-0} # trials run at the priority of the job
# Only the sweep may write its exit code there, not a trial.
exit_file=$DISTVAE_EXIT_FILE
unset DISTVAE_EXIT_FILE

# Ray's files, separate from those of other clusters on this node. The paths of its sockets leave room for about 40
# characters. Ray makes the files writable for everyone, so they are in a folder that nobody else may enter. Remove those
# of an earlier start of this job that was killed here.
rm -rf "/tmp/distvae-ray-$SLURM_JOB_ID".* 2>/dev/null || :
temp=$(mktemp -d "/tmp/distvae-ray-$SLURM_JOB_ID.XXXX")

sessions=()
end_started() { # kill the processes that this script started; none has anything left to save
    local started
    for started in $(jobs -p); do
        disown "$started" # otherwise bash reports its end
        kill -KILL $(below "$started") || :
    done
    for started in "${sessions[@]}"; do
        pkill -KILL --session "$started" || :
    done
    sessions=()
} 2>/dev/null

leave() {
    local status=$?
    trap '' TERM USR1
    [[ -z $first || -e $exit_file ]] || echo "$status" >"$exit_file"
    end_started
    rm -rf "$temp"
} 2>/dev/null
trap leave EXIT

start() { # COMMAND…: start it in its own session, which identifies its descendants
    setsid "${container[@]}" "$@" &
    sessions+=("$!")
}

start_ray() { # OPTION…
    # Port 0 has the kernel choose, because other clusters may share this node. Ray's processes ignore USR1, which Slurm
    # may send to every process before the job ends.
    start env TMPDIR="$temp" AUTOSCALER_METRIC_PORT=0 DASHBOARD_METRIC_PORT=0 \
        sh -c 'trap "" USR1; exec ray start "$@"' ray --block --disable-usage-stats --temp-dir="$temp/ray" \
        --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=200000000 \
        --node-manager-port=0 --object-manager-port=0 --min-worker-port=0 --max-worker-port=0 \
        --runtime-env-agent-port=0 --metrics-export-port=0 \
        --dashboard-agent-listen-port=0 --dashboard-agent-grpc-port=0 "$@" >"$temp/start.log" 2>&1
    ray=$!
}

last_words() { # WHAT HAPPENED: print it, and the end of Ray's log
    echo "Ray $1:"
    tail -n 20 "$temp/start.log" | sed 's/^/    /' # indented, so that show_failure() does not take it for the cause
} >&2

head_answers() {
    timeout 5 bash -c ": </dev/tcp/${address%:*}/${address##*:}" 2>/dev/null
}

# With --no-kill, Slurm does not end a job that loses a node, even its first one. Then the other nodes must act.

first_is_lost() { # whether Slurm has removed the first node from the job
    local job
    job=$(scontrol --oneliner show job "$SLURM_JOB_ID") || return 1
    [[ $job =~ \ NodeList=([^ ]+)\ BatchHost=([^ ]+) ]] || return 1
    ! scontrol show hostnames "${BASH_REMATCH[1]}" | grep -qxF "${BASH_REMATCH[2]}"
}

replace_first() { # requeue the job, or cancel it; ends this script
    echo "the job's first node is lost" >&2
    trap 'exit 1' TERM
    (come_back "${code%/code}") &
    wait "$!" || :
    scancel --state=RUNNING "$SLURM_JOB_ID"
    exit 1
}

# Wait for all nodes for up to a minute.
gather='
import os, sys, time
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
wanted, end = int(os.environ["SLURM_JOB_NUM_NODES"]), time.monotonic() + 60
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < end:
    time.sleep(0.5)
if there < wanted:
    print(f"only {there} of {wanted} nodes have joined after 60 s; the sweep starts without the others", file=sys.stderr)
'

if [[ -n $first ]]; then
    # Until the sweep runs there is nothing to save, so a signal only interrupts the job.
    trap 'exit "$interrupted"' TERM USR1
    # Ray gives up if its processes do not start within half a minute, as on a busy node.
    for ((starts = 1; ; starts++)); do
        start_ray --head --node-ip-address="${address%:*}" --port="${address##*:}" --ray-client-server-port="$client" \
            --dashboard-host=127.0.0.1 --dashboard-port="$dashboard"
        start env RAY_ADDRESS="$address" python3 -c "$gather"
        ! wait -n "$ray" "$!" || break
        last_words "did not start on $SLURMD_NODENAME (start $starts of 3)"
        end_started
        ((starts < 3)) || { echo "distvae: Ray does not start on $SLURMD_NODENAME" >&2; exit 1; }
    done
    export RAY_ADDRESS=$address
    asked=
    trap 'asked=USR1' USR1
    trap 'asked=TERM' TERM
    start env DISTVAE_EXIT_FILE="$exit_file" "$@"
    driver=$!
    trap 'pass_on USR1 "$driver"' USR1
    trap 'pass_on TERM "$driver"' TERM
    [[ -z $asked ]] || pass_on "$asked" "$driver"
    status=0
    outwait "$driver" || status=$?
    # A sweep whose Ray has ended gives up after a minute, and can be resumed.
    if ((status != 0 && status != 2 && status != interrupted)) && ! kill -0 "$ray" 2>/dev/null; then
        last_words "has ended on $SLURMD_NODENAME, and the sweep with it"
        status=$interrupted
        echo "$status" >"$exit_file"
    fi
    exit "$status"
fi

# Before the job ends, the first node has the trials on this node save themselves. This script ends after the first node
# has, which writes an exit code.
ending=
trap : USR1
trap 'ending=yes' TERM
for ((i = 0; i < 300; i++)); do
    ! head_answers || break
    sleep 1
done
if ((i == 300)); then
    echo "$SLURMD_NODENAME gives up: no Ray at $address, the job's first node, after 300 s" >&2
    exit 1
fi
start_ray --address="$address"
ends=0 due='' heard=$SECONDS
while ((SECONDS - heard < 900)); do # Slurm may take minutes to notice that a node is lost
    if head_answers; then
        heard=$SECONDS
        if [[ ! -e $exit_file ]] && ! kill -0 "$ray" 2>/dev/null; then
            [[ -z $ending ]] || break
            # Wait longer after each failure: a busy node recovers, and one where Ray never starts must not flood the log.
            if [[ -z $due ]]; then
                pause=$((10 * ends))
                last_words "has ended on $SLURMD_NODENAME (time $((++ends)); it is started again after $pause s)"
                end_started
                due=$((SECONDS + pause))
            fi
            if ((SECONDS >= due)); then
                start_ray --address="$address"
                due=''
            fi
        fi
    elif [[ -e $exit_file || -n $ending ]]; then
        exit 0
    elif first_is_lost; then
        replace_first
    fi
    sleep 2
done
echo "the sweep continues without $SLURMD_NODENAME" >&2
exit 1
