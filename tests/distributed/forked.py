"""N runs one after the other, each by two processes of a gloo group that end as a program's own do.

Forked from a process that has imported everything: a run takes two seconds, and its end is the interpreter's own.
Prints the exit codes that were not 0.
"""

import os
import socket
import sys

from distvae.train import main

runs, arguments = int(sys.argv[1]), sys.argv[2:]
failed = []
for number in range(runs):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(main([*arguments, f"run={sys.argv[2]}.runs/{number}"]))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    failed += [(number, codes)] if any(codes) else []
print(f"{runs} runs, not ended with 0: {failed}")
sys.exit(bool(failed))
