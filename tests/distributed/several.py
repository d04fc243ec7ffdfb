"""Several runs by the same processes, which take longer to start than to run: the arguments of each after a `--`."""

import gc
import itertools
import sys

import torch.distributed as dist

from distvae.train import main

gc.freeze()  # keeps what is imported out of the runs' garbage collections
runs = [list(run) for dashes, run in itertools.groupby(sys.argv[1:], lambda word: word == "--") if not dashes]
leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
for run in runs:
    if code := main(run):
        sys.exit(code)
if dist.is_initialized():
    leave()
