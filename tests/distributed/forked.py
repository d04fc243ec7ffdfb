"""Many groups of processes, forked one after the other from one that has imported everything.

Starting a launcher takes longer than most runs here; these processes find what it would tell them in their environment,
and end as a program's own do, by way of the interpreter. Argument: a JSON file, a list of groups::

    {"processes": 2, "environment": {}, "double": false, "runs": [[argument of the program, …], …]}

Prints, as JSON, what each process exited with.
"""

import gc
import json
import os
import socket
import sys
from pathlib import Path

import torch
import torch._dynamo  # which an optimizer imports when it is made
import torch.distributed as dist

from distvae.train import main

groups = json.loads(Path(sys.argv[1]).read_text())
if any("ACCELERATE_USE_DEEPSPEED" in group.get("environment", {}) for group in groups):
    import deepspeed  # noqa: F401


def take_part(group):
    """One process's runs; all but the last leave the process group as it is, for the next."""
    if group.get("double"):
        torch.set_default_dtype(torch.float64)
    leave = dist.destroy_process_group
    *others, last = group["runs"]
    dist.destroy_process_group = lambda: None
    for run in others:
        if code := main(run):
            return code
    dist.destroy_process_group = leave
    return main(last)


# A run's garbage collections would look through everything imported, and copy its pages into each process.
gc.collect()
gc.freeze()
codes = []
for group in groups:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(group["processes"]):
        child = os.fork()
        if child == 0:
            size = str(group["processes"])
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **group.get("environment", {})}
            os.dup2(2, 1)
            sys.exit(take_part(group))
        children.append(child)
    codes.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
print(json.dumps(codes))
