"""The number of usable cores, with and without a Slurm job."""

import os

import pytest

from distvae.system.cores import usable_cores
from distvae.system.errors import UserError


@pytest.mark.parametrize(("given", "cores"), [(None, 8), ("", 8), ("3", 3), ("16", 8)])
def test_a_job_has_no_more_cores_than_its_share(monkeypatch, given, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if given is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", given)
    assert usable_cores() == cores


def test_a_share_that_is_not_a_number_is_refused(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2(x3)")
    with pytest.raises(UserError, match=r"SLURM_CPUS_ON_NODE is '2\(x3\)': should be a whole number from 1"):
        usable_cores()
