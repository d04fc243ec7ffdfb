"""How many CPUs there are to use."""

from __future__ import annotations

import os
import sys

from distvae.system.launcher import number


def usable_cores() -> int:
    """Those that this process may run on; in a Slurm job no more than the job has on this node, whether or not Slurm
    keeps it to them."""
    return min(len(os.sched_getaffinity(0)), number("SLURM_CPUS_ON_NODE", sys.maxsize))
