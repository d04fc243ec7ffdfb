#!/usr/bin/env bash
# One node's part in a sweep: srun runs this once on each node.
#   ray.sh HEAD:PORT CLIENT DASHBOARD COMMAND…
# The first node starts a Ray cluster at HEAD:PORT and, once the others have joined it, runs COMMAND. With that the cluster
# ends, on all nodes. CLIENT and DASHBOARD are ports of the first node.
# shellcheck disable=SC2031,SC2046,SC2153,SC2317  # job.sh reads env.sh in subshells; numbers need no quotes; traps are reached
set -euo pipefail

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# A node may show its processes GPUs that the job was not given.
[[ -n ${SLURM_GPUS_ON_NODE:-} ]] || export CUDA_VISIBLE_DEVICES=
set +u # what a site calls in env.sh was seldom written for it
. "$code/slurm/env.sh"
set -u
. "$code/slurm/signals.sh"
. "$code/slurm/job.sh"

address=$1 client=$2 dashboard=$3
shift 3
first=
((SLURM_NODEID)) || first=yes

# The copy is what runs, the trials' processes included.
export PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
unset RAY_ADDRESS
# It is for the sweep to say how it ends, not for a trial.
exit_file=$DISTVAE_EXIT_FILE
unset DISTVAE_EXIT_FILE

# Ray's own files, which another cluster on this node must not find. Its sockets' paths allow some 40 characters at most.
# A start of this job that was killed here may have left its own. Ray lets everyone write to them, so they lie within
# a folder that nobody else may enter.
rm -rf "/tmp/distvae-ray-$SLURM_JOB_ID".* 2>/dev/null || :
temp=$(mktemp -d "/tmp/distvae-ray-$SLURM_JOB_ID.XXXX")

sessions=()
end_started() { # end what was started here, and nothing else; nobody has anything to save
    local started
    for started in $(jobs -p); do
        disown "$started" # or bash tells of its end
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

start() { # COMMAND…: in a session of its own, by which all that it starts is known
    setsid "${container[@]}" "$@" &
    sessions+=("$!")
}

start_ray() { # OPTION…
    # Other clusters may share this node: the kernel gives each the ports that 0 stands for. Nothing of Ray's dies of USR1,
    # in case Slurm tells every process that an end is near.
    start env TMPDIR="$temp" AUTOSCALER_METRIC_PORT=0 DASHBOARD_METRIC_PORT=0 \
        sh -c 'trap "" USR1; exec ray start "$@"' ray --block --disable-usage-stats --temp-dir="$temp/ray" \
        --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=200000000 \
        --node-manager-port=0 --object-manager-port=0 --min-worker-port=0 --max-worker-port=0 \
        --runtime-env-agent-port=0 --metrics-export-port=0 \
        --dashboard-agent-listen-port=0 --dashboard-agent-grpc-port=0 "$@" >"$temp/start.log" 2>&1
    ray=$!
}

last_words() { # WHAT HAPPENED: Ray's
    echo "Ray $1:"
    tail -n 20 "$temp/start.log" | sed 's/^/    /' # not to be taken for why the job fails, if it does
} >&2

head_answers() {
    timeout 5 bash -c ": </dev/tcp/${address%:*}/${address##*:}" 2>/dev/null
}

# Slurm leaves a job alone that has lost a node (--no-kill), its first one too: then it is for the others to act.

first_is_lost() { # whether Slurm has taken the job's first node from it
    local job
    job=$(scontrol --oneliner show job "$SLURM_JOB_ID") || return 1
    [[ $job =~ \ NodeList=([^ ]+)\ BatchHost=([^ ]+) ]] || return 1
    ! scontrol show hostnames "${BASH_REMATCH[1]}" | grep -qxF "${BASH_REMATCH[2]}"
}

replace_first() { # have Slurm start the job again, or end it; ends this script
    echo "the job's first node is lost" >&2
    trap 'exit 1' TERM
    (come_back "${code%/code}") &
    wait "$!" || :
    scancel --state=RUNNING "$SLURM_JOB_ID"
    exit 1
}

# Waits a minute for all nodes.
gather='
import os, sys, time
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
wanted, end = int(os.environ["SLURM_JOB_NUM_NODES"]), time.monotonic() + 60
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < end:
    time.sleep(0.5)
if there < wanted:
    print(f"only {there} of {wanted} nodes are there after 60 s; the sweep begins without the others", file=sys.stderr)
'

if [[ -n $first ]]; then
    # Until the sweep runs, there is nothing to save: the job can go on.
    trap 'exit "$interrupted"' TERM USR1
    # Ray gives up where a node is too busy to start all its processes within half a minute.
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
    # A sweep whose Ray has ended gives up after a minute, and can go on.
    if ((status != 0 && status != 2 && status != interrupted)) && ! kill -0 "$ray" 2>/dev/null; then
        last_words "has ended on $SLURMD_NODENAME, and the sweep with it"
        status=$interrupted
        echo "$status" >"$exit_file"
    fi
    exit "$status"
fi

# The first node has the trials here save when an end is near. Its own end, of which it leaves word, is the sign for this
# one's.
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
while ((SECONDS - heard < 900)); do # Slurm itself may need minutes to see that a node is lost
    if head_answers; then
        heard=$SECONDS
        if [[ ! -e $exit_file ]] && ! kill -0 "$ray" 2>/dev/null; then
            [[ -z $ending ]] || break
            # A node that is too busy may not be for long, one where Ray never starts should not fill its log with that.
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
echo "the sweep goes on without $SLURMD_NODENAME" >&2
exit 1
