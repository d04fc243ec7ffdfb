"""Runs under torch's profiler, the arguments of each after a `--`: writes what collectives this process took part in.

The first argument is the file, JSON: of each run a count by kind and shape. The profiler sees collectives where they
are carried out, DDP's own included.
"""

import collections
import gc
import itertools
import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from distvae.train import main

gc.freeze()  # keeps what is imported out of the runs' garbage collections
leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
counts = []
for dashes, run in itertools.groupby(sys.argv[2:], lambda word: word == "--"):
    if dashes:
        continue
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        assert main(list(run)) == 0
    # As they were recorded: `profiler.events()` takes a minute to put them in order.
    seen = [event for event in profiler.profiler.kineto_results.events() if event.name().startswith("gloo:")]
    counts.append(collections.Counter(f"{event.name().removeprefix('gloo:')} {event.shapes()[0]}" for event in seen))
leave()
if os.environ["RANK"] == "0":
    Path(sys.argv[1]).write_text(json.dumps(counts))
