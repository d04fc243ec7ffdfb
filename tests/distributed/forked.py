"""A process that has imported everything, from which the tests of a session fork groups of processes.

Starting an interpreter takes longer than most runs here, and starting a launcher longer still. Forked processes find in
their environment what a launcher would tell them, and end as a program's own do, by way of the interpreter.

Reads a plan per line, as JSON: ``environment``; ``output``, a folder; and ``groups``, one after the other::

    {"processes": 2, "launched": true, "environment": {}, "double": false, "program": "distvae.train",
     "runs": [[argument, …], …], "own": [[argument of rank 0, …], …], "folders": [working directory of rank 0, …]}

Answers with what each process exited with. Rank 1 of the first group writes its output to ``0-1.out`` and ``0-1.err``.
"""

import faulthandler
import gc
import importlib
import json
import os
import socket
import sys

import torch
import torch.distributed as dist

import distvae.train

# What a run imports where it needs it: seconds for each process.
LATE = (
    "datasets", "torch._dynamo", "distvae.reports.comparison", "distvae.runs.resume", "distvae.runs.trackers.libraries",
    "distvae.training.trainer", "distvae.training.writer",
)  # fmt: skip


def take_part(group, rank):
    """One process's runs; all but the last leave the process group as it is, for the next."""
    if "folders" in group:
        os.chdir(group["folders"][rank])
    if group.get("double"):
        torch.set_default_dtype(torch.float64)
    main = importlib.import_module(group["program"]).main if "program" in group else distvae.train.main
    own = group["own"][rank] if "own" in group else []
    leave = dist.destroy_process_group
    *others, last = group["runs"]
    dist.destroy_process_group = lambda: None
    for run in others:
        if code := main([*run, *own]):
            return code
    dist.destroy_process_group = leave
    return main([*last, *own])


def start(plan, number, rank, port):
    """Fork a process, and return its id."""
    if child := os.fork():
        return child
    group = plan["groups"][number]
    size = str(group["processes"])
    os.environ.clear()
    os.environ |= plan["environment"]
    if group.get("launched", True):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **group.get("environment", {})}
    paths = [os.devnull, *(os.path.join(plan["output"], f"{number}-{rank}.{name}") for name in ("out", "err"))]
    for stream, path in enumerate(paths):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    sys.exit(take_part(group, rank))


def carry_out(plan):
    """Run the groups of a plan. Return the exit codes of each."""
    if any("ACCELERATE_USE_DEEPSPEED" in group.get("environment", {}) for group in plan["groups"]):
        import deepspeed  # noqa: F401
    # A run's garbage collections would look through everything imported, and copy its pages into each process.
    gc.collect()
    gc.freeze()
    codes = []
    for number, group in enumerate(plan["groups"]):
        with socket.socket() as held:  # else other tests could take its port
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            children = [start(plan, number, rank, held.getsockname()[1]) for rank in range(group["processes"])]
            codes.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    return codes


if __name__ == "__main__":
    faulthandler.enable()
    for name in LATE:
        importlib.import_module(name)
    plans, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # libraries may speak
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with open(plans) as lines:
        for line in iter(lines.readline, ""):
            os.write(answers, (json.dumps(carry_out(json.loads(line))) + "\n").encode())
