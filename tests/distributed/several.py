"""Several runs by the same processes, which take longer to start than to run: the arguments of each after a `--`.

`--double` before them makes float64 the type of every weight and draw.
"""

import itertools
import sys

import torch
import torch.distributed as dist

from distvae.train import main

if sys.argv[1] == "--double":
    del sys.argv[1]
    torch.set_default_dtype(torch.float64)
runs = [list(run) for dashes, run in itertools.groupby(sys.argv[1:], lambda word: word == "--") if not dashes]
leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
for run in runs:
    if code := main(run):
        sys.exit(code)
if dist.is_initialized():
    leave()
