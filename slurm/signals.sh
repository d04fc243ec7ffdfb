# shellcheck shell=bash
# How a node's first process waits for its program and passes on signals. Usually Slurm signals no other process.

below() { # PROCESS: print it and its descendants
    local children child
    echo "$1"
    read -rd '' -a children < <(cat /proc/"$1"/task/*/children 2>/dev/null) || :
    for child in "${children[@]}"; do
        below "$child"
    done
}

takes() { # PROCESS NUMBER: whether a process handles a signal, or blocks it in order to handle it later
    local program own name mask blocks=0 catches=0
    # For a moment, a fork of this shell that is about to execute a program still has this shell's traps.
    mapfile -d '' program <"/proc/$1/cmdline"
    mapfile -d '' own <"/proc/$$/cmdline"
    [[ ${program[*]} != "${own[*]}" ]] || return 1
    while read -r name mask; do
        case $name in SigBlk:) blocks=16#$mask ;; SigCgt:) catches=16#$mask ;; esac
    done <"/proc/$1/status"
    if ((blocks >> ($2 - 1) & 1)); then
        # A process that starts another blocks all signals for a moment, also SIGCHLD. That does not count.
        ! ((blocks >> ($(kill -l CHLD) - 1) & 1))
    else
        ((catches >> ($2 - 1) & 1))
    fi
} 2>/dev/null

outwait() { # PROCESS: wait until a child ends, despite signals; return its status
    while wait "$1"; kill -0 "$1" 2>/dev/null; do :; done
    wait "$1"
}

told=
pass_on() { # SIGNAL PROGRAM: send it once to each process of the program that takes it, now or later
    local process number
    [[ -z $told ]] || return 0
    told=yes
    echo "SIG$1: passed on to the training, to save and end" >&2
    number=$(kill -l "$1")
    (
        trap '' TERM USR1
        declare -A had
        while kill -0 "$2" 2>/dev/null; do
            for process in $(below "$2"); do
                if [[ -z ${had[$process]:-} ]] && takes "$process" "$number"; then
                    had[$process]=yes
                    kill -s "$1" "$process" 2>/dev/null || :
                fi
            done
            sleep 0.5
        done
    ) &
}
