"""Runs trainings under torch's profiler, and writes what collectives this process took part in."""

import collections
import itertools
import json
import os
from pathlib import Path

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from distvae import train


def main(arguments):
    """The profiler sees collectives where they are carried out, DDP's own included.

    Args:
        arguments: a file for JSON, of each run a count by kind and shape; and the arguments of each run after a `--`.
    """
    path, *words = arguments
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    counts = []
    for dashes, run in itertools.groupby(words, lambda word: word == "--"):
        if dashes:
            continue
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            assert train.main(list(run)) == 0
        # As they were recorded: `profiler.events()` takes a minute to put them in order.
        events = profiler.profiler.kineto_results.events()
        seen = [event for event in events if event.name().startswith("gloo:")]
        counts.append(
            collections.Counter(f"{event.name().removeprefix('gloo:')} {event.shapes()[0]}" for event in seen)
        )
    leave()
    if os.environ["RANK"] == "0":
        Path(path).write_text(json.dumps(counts))
    return 0
