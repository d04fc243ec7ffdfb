# shellcheck shell=bash
# How a node's first process waits for its program, and passes signals on to it. Usually Slurm tells no other process.

below() { # PROCESS: it, and all below it
    local children child
    echo "$1"
    read -rd '' -a children < <(cat /proc/"$1"/task/*/children 2>/dev/null) || :
    for child in "${children[@]}"; do
        below "$child"
    done
}

takes() { # PROCESS NUMBER: whether it handles a signal, or will
    local name mask
    while read -r name mask; do
        case $name in SigBlk: | SigCgt:) ! ((16#$mask >> ($2 - 1) & 1)) || return 0 ;; esac
    done <"/proc/$1/status"
    return 1
} 2>/dev/null

outwait() { # PROCESS: wait until a child ends, and not just until a signal comes; returns its status
    while wait "$1"; kill -0 "$1" 2>/dev/null; do :; done
    wait "$1"
}

told=
pass_on() { # SIGNAL PROGRAM: to each of its processes that takes it, once, also to those that start later
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
