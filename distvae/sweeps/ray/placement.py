"""Fits the resources of trials to the nodes of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray

from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError
from distvae.system.plural import counted


@dataclass(frozen=True)
class Placement:
    """Where a sweep's trials can run."""

    gpus: float  # of each process of a trial
    slots: int  # trials at a time
    nodes: tuple[str, ...]  # host names
    total_cpus: float
    total_gpus: float


def fit(sweep: Sweep) -> Placement:
    """Fit the resources of trials to the nodes.

    Raises:
        UserError: the nodes have no room for a trial.
    """
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes  # Ray declares no types for it
    nodes = [node for node in list_nodes() if node["Alive"]]
    settings = sweep.config.trial
    most = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    gpus = (1.0 if most["GPU"] else 0.0) if settings.gpus is None else settings.gpus
    for name, wanted in (("CPU", settings.cpus), ("GPU", gpus)):
        if wanted > most[name]:
            raise UserError(f"trial.{name.lower()}s = {wanted:g}: no node has more than {most[name]:g} {name}s")
    if settings.workers > 1 and 0 < gpus < 1:
        raise UserError(f"trial.gpus = {gpus:g}: several processes of a trial cannot share a GPU; give each 1")
    room = sum(processes_on(node["Resources"], settings.cpus, gpus) for node in nodes)
    slots = room // settings.workers
    if slots == 0:
        processes = counted(room, "process", "processes")
        raise UserError(f"trial.workers = {settings.workers}: the nodes have room for {processes} in all")
    return Placement(
        gpus,
        slots=min(slots, sweep.config.max_concurrent or slots, sweep.trials),
        nodes=tuple(sorted(node["NodeManagerHostname"] for node in nodes)),
        total_cpus=sum(node["Resources"].get("CPU", 0) for node in nodes),
        total_gpus=sum(node["Resources"].get("GPU", 0) for node in nodes),
    )


def fitted(sweep: Sweep, placement: Placement) -> Sweep:
    """Return the sweep with the GPUs that each process of a trial gets."""
    trial = replace(sweep.config.trial, gpus=placement.gpus)
    return replace(sweep, config=replace(sweep.config, trial=trial))


def gpus_of(sweep: Sweep) -> float:
    """Return the GPUs of each process of a trial, of a fitted sweep."""
    return sweep.config.trial.gpus or 0.0


def processes_on(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many processes of trials a node has room for. A share of a GPU lies on one GPU, never on two."""
    room = int(resources.get("CPU", 0) / cpus + 1e-9)
    return min(room, int(resources.get("GPU", 0)) * int(1 / gpus + 1e-9)) if gpus else room
