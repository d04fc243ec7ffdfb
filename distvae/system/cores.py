"""The number of usable CPU cores."""

from __future__ import annotations

import os
import sys

from distvae.system.launcher import number


def usable_cores() -> int:
    """Return the number of cores that this process may run on.

    In a Slurm job it is at most the job's share of this node, even where Slurm does not confine the job to it.
    """
    return min(len(os.sched_getaffinity(0)), number("SLURM_CPUS_ON_NODE", sys.maxsize))
