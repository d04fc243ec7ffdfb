"""A model of what a training step costs on a machine: fitted to measured times, or assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distvae.scaling.costs import Collective, Kind, Work
from distvae.system.errors import UserError

# What a backward takes of a step's arithmetic; gradients can travel meanwhile.
BACKWARD = 2 / 3


@dataclass(frozen=True)
class Network:
    """Links of a ring."""

    latency: float  # seconds of a message without content, from one neighbour to the next
    bandwidth: float  # bytes a second of one direction

    def seconds(self, kind: Kind, size: int, ranks: int) -> float:
        """A ring all-reduce passes everything around twice, a reduce-scatter or all-gather once."""
        rounds = 2 if kind == "all_reduce" else 1
        return rounds * (ranks - 1) * (self.latency + size / ranks / self.bandwidth)


@dataclass(frozen=True)
class Machine:
    """Constants of the model. A node's processes share its network: ``across`` has the bandwidth of a node."""

    flops: float  # operations a second of one process, in the long run
    step_overhead: float  # seconds of a step beside its sentences: launching kernels, the update
    draws: float  # random numbers a second
    per_node: int  # processes
    inside: Network
    across: Network

    def seconds(self, collective: Collective, processes: int) -> float:
        """A collective: reduce-scatter inside each node, all-reduce across, all-gather inside, as far as it has them.

        Raises:
            UserError: the processes fill no whole number of nodes.
        """
        if processes > self.per_node and processes % self.per_node:
            raise UserError(f"{processes} processes fill no whole number of nodes of {self.per_node}")
        local = min(processes, self.per_node)
        kind, size = collective.kind, collective.bytes
        return self.inside.seconds(kind, size, local) + self.across.seconds(kind, size, processes // local)

    def sentence_seconds(self, work: Work) -> float:
        """What a sentence adds to the step of the process that holds it."""
        return work.flops / self.flops

    def draw_seconds(self, work: Work) -> float:
        """What a sentence of the global batch adds to the step of *every* process, for all draw for the whole batch."""
        return work.draws / self.draws


# Data sheets: an H100 SXM has 67 TFLOP/s in float32 and 450 GB/s of NVLink each way; the network is 100 Gb/s a node.
# Assumed: 30% of the first and 80% of the others in practice, the latencies, 3 ms of a step whatever its size, and a
# random number every 10 ps.
ASSUMED = Machine(
    flops=20e12,
    step_overhead=3e-3,
    draws=1e11,
    per_node=8,
    inside=Network(3e-6, 360e9),
    across=Network(10e-6, 10e9),
)


@dataclass(frozen=True)
class Prediction:
    """A training step of all processes together. Pairs are: as much sent during the backward as can be; nothing."""

    communication: float  # seconds, were nothing else done
    step: tuple[float, float] | None  # seconds at the batch asked for; None: not a sentence for each process
    least_batch: tuple[int, int]  # global batch from which on communication is within its share of a step
    least_step: tuple[float, float]  # seconds at those


def predict(
    work: Work, collectives: Sequence[Collective], machine: Machine, processes: int, batch: int, share: float = 0.1
) -> Prediction:
    """Predict a step.

    Args:
        collectives: of a step.
        batch: sentences of a step over all processes.
        share: what communication may take of a step, for ``least_batch``.
    """
    overlapping, waiting = 0.0, 0.0
    for collective in collectives:
        seconds = collective.per_step * machine.seconds(collective, processes)
        if collective.overlaps:
            overlapping += seconds
        else:
            waiting += seconds

    # A step's own arithmetic and its draws are each a constant and a slope in the sentences of a process.
    fixed, slope = machine.step_overhead, machine.sentence_seconds(work)
    drawing = processes * machine.draw_seconds(work)

    def step(each: int, overlap: float) -> float:
        computing = fixed + each * slope
        return computing + each * drawing + waiting + max(0.0, overlapping - overlap * BACKWARD * computing)

    def least(overlap: float) -> int:
        """Sentences of a process such that communication that shows ≤ share / (1 − share) of the rest."""
        ratio = share / (1 - share)
        at_hidden = (waiting / ratio - fixed) / (slope + drawing)
        hidden = overlap * BACKWARD
        at_shown = (waiting + overlapping - (ratio + hidden) * fixed) / ((ratio + hidden) * slope + ratio * drawing)
        return max(1, math.ceil(at_hidden), math.ceil(at_shown))

    each = math.ceil(batch / processes)
    leasts = least(1.0), least(0.0)
    return Prediction(
        communication=overlapping + waiting,
        step=None if batch < processes else (step(each, 1.0), step(each, 0.0)),
        least_batch=(leasts[0] * processes, leasts[1] * processes),
        least_step=(step(leasts[0], 1.0), step(leasts[1], 0.0)),
    )


def fit_network(seconds: dict[int, float], ranks: int) -> Network:
    """Latency and bandwidth of a ring from the time of all-reduces by their bytes: least relative squares.

    Raises:
        UserError: the times are not those of a ring.
    """
    sizes = np.array(list(seconds), dtype=float)
    rounds = 2 * (ranks - 1)
    latency, per_byte = _fit(
        [np.full(len(sizes), rounds), rounds / ranks * sizes], list(seconds.values()), "all-reduce"
    )
    return Network(latency, 1 / per_byte)


def fit_compute(seconds: dict[int, float], work: Work) -> tuple[float, float]:
    """Operations a second, and seconds of a step beside its sentences: least relative squares.

    Args:
        seconds: of steps that neither send nor draw anything, by sentences of the process.

    Raises:
        UserError: the times do not grow with the sentences.
    """
    each = np.array(list(seconds), dtype=float)
    overhead, per_flop = _fit([np.ones(len(each)), each * work.flops], list(seconds.values()), "step")
    return 1 / per_flop, overhead


def _fit(columns: list[np.ndarray], seconds: list[float], what: str) -> np.ndarray:
    times = np.array(seconds)
    solution: np.ndarray = np.linalg.lstsq(np.stack(columns, 1) / times[:, None], np.ones(len(times)), rcond=None)[0]
    if (solution <= 0).any():
        raise UserError(
            f"the measured {what} times do not grow as their sizes do: something else keeps this machine busy; measure"
            " again"
        )
    return solution
