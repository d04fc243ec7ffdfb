"""Scenes beside the kills: changing numbers of processes, and two attempts of one run."""

from __future__ import annotations

import signal
from pathlib import Path

from distvae.runs import checkpoints
from distvae.runs.records import read_metrics
from distvae.system.files import MANIFEST, sha256
from tests.distributed.test_engines import Difference, compare
from tests.faults.campaign import ALONE, Campaign, Chain, Job, Kill, Way, tensorboard


def by_turns(campaign: Campaign, variant: str = "calm") -> tuple[list[str], Difference]:
    """Train with one process, two, three and one again, with a kill before each change.

    Return the faults, and the differences from a run of one process. Decisions must be exactly equal.
    """
    reference, run = campaign.reference(ALONE, variant), campaign.folder / f"by-turns-{variant}"
    turns = [
        (ALONE, Kill("TERM all", "step", 0, 0.17, 0.0)),
        (Way("DDP", 2), Kill("KILL all", "save", 0, 0.45, 0.6)),
        (Way("DDP", 3), Kill("TERM one rank", "step", 1, 0.8, 0.0)),
    ]
    faults = []
    for way, kill in turns:
        outcome = campaign.kill(Chain(0, way, variant, False, (kill,)), kill, run, reference)
        faults += [f"{way}: finished before the kill"] if outcome is None else outcome.faults
    last = campaign.job(ALONE, variant, run)
    if last.wait() or set(last.codes) != {0}:
        faults.append(f"failed: exit codes {last.codes} {last.log}")
    return faults, compare(campaign.run_of(ALONE, variant), run)


def seen(run: Path) -> dict[str, object]:
    """Return what readers see of a run."""
    return {
        "results": (run / "results.json").read_text(),
        "best": ((run / "best" / MANIFEST).read_text(), sha256(run / "best" / "model.safetensors")),
        "pretrained": ((run / "pretrained" / MANIFEST).read_text(), sha256(run / "pretrained" / "model.safetensors")),
        "checkpoint": checkpoints.newest_checkpoint(run).name,
        "metrics": read_metrics(run),
        "status": (run / "status.json").read_text(),
        **tensorboard(run),
    }


def overtaken(campaign: Campaign, place: str, after: int, skip: int = 0) -> list[str]:
    """Stop an attempt, as on a node that seems dead, let the requeued job finish the run, and wake the first one.

    It must stop by itself and change nothing that readers see. Return the faults.
    """
    run = campaign.folder / f"overtaken-{place.replace(' ', '-')}-{skip}"
    orders = {"place": place, "after": after, "skip": skip}
    first = campaign.job(ALONE, "sgd", run, orders=orders, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="0")
    if first.come("here") is None:
        return [f"{place}: not reached"]
    first.send(signal.SIGSTOP, "all")
    first.go()
    second = campaign.job(ALONE, "sgd", run, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1")
    faults = []
    if second.wait() or second.codes != [0]:
        faults.append(f"the second attempt ended with {second.codes}: {second.log}")
    before = seen(run)
    first.send(signal.SIGCONT, "all")
    if left := first.wait():
        faults.append(f"processes {left} survived")
    lines = [line for line in first.log.splitlines() if line.startswith("distvae: ")]
    if first.codes != [2] or len(lines) != 1 or "attempt 2 has taken over; attempt 1 stops" not in lines[0]:
        faults.append(f"the first attempt ended with {first.codes}: {first.log[-1500:]}")
    after_all = seen(run)
    return faults + [f"changed: {name}" for name in before if before[name] != after_all[name]]


def refused(campaign: Campaign) -> list[str]:
    """A second attempt is refused while the first lives, but not after the first was killed. Return the faults."""
    run, faults = campaign.folder / "refused", []
    first = campaign.job(ALONE, "sgd", run, orders={"place": "step", "after": 20})
    first.come("here")
    second = campaign.job(ALONE, "sgd", run)
    second.wait()
    lines = [line for line in _said(second) if ": starting " not in line]
    if second.codes != [2] or len(lines) != 1 or "attempt 1 is training it" not in lines[0]:
        faults.append(f"the second attempt ended with {second.codes}: {second.log}")
    first.send(signal.SIGKILL, "all")
    first.wait()
    third = campaign.job(ALONE, "sgd", run)
    third.wait()
    if third.codes != [0] or "resuming from" not in third.log:
        faults.append(f"the third attempt ended with {third.codes}: {third.log}")
    return faults


def _said(job: Job) -> list[str]:
    return [line for line in job.log.splitlines() if line.strip()]
