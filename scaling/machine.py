"""A model of what a training step costs on a machine: constants that are measured or assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distvae.system.errors import UserError
from scaling.costs import Collective, Kind, Work

# The share of a step that sending may take at ``Prediction.least_batch``.
SHARE = 0.1


@dataclass(frozen=True)
class Network:
    """The links of a ring."""

    latency: float  # seconds of an empty message from one neighbour to the next
    bandwidth: float  # bytes per second, each way

    def seconds(self, kind: Kind, size: int, ranks: int) -> float:
        """Return a collective's time: a ring passes an all-reduce around twice, the others once."""
        rounds = 2 if kind == "all_reduce" else 1
        return rounds * (ranks - 1) * (self.latency + size / ranks / self.bandwidth)


@dataclass(frozen=True)
class Machine:
    """Constants of the model."""

    flops: float  # operations per second of one process
    step_overhead: float  # seconds of a step at any batch: launching kernels, the update
    draws: float  # random numbers per second
    per_node: int  # processes of a node
    inside: Network  # between the processes of a node
    across: Network  # between nodes; the processes of a node share its bandwidth

    def seconds(self, collective: Collective, processes: int) -> float:
        """Return a collective's time: reduce-scatter inside each node, all-reduce across nodes, all-gather inside.

        Raises:
            UserError: the processes fill no whole number of nodes.
        """
        if processes > self.per_node and processes % self.per_node:
            raise UserError(f"{processes} processes fill no whole number of nodes of {self.per_node}")
        local = min(processes, self.per_node)
        kind, size = collective.kind, collective.bytes
        return self.inside.seconds(kind, size, local) + self.across.seconds(kind, size, processes // local)


# From data sheets: an H100 SXM has 67 TFLOP/s in float32 and 450 GB/s of NVLink each way; the network has 100 Gb/s per
# node. Assumed: 30% of the first and 80% of the others in practice, the latencies, 3 ms per step, and 10 ps per draw.
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
    """A training step of all processes, none of whose sending hides behind the backward."""

    sending: float  # seconds
    step: float  # seconds
    least_batch: int  # the smallest global batch at which sending takes at most ``SHARE`` of a step


def predict(work: Work, collectives: Sequence[Collective], machine: Machine, processes: int, batch: int) -> Prediction:
    """Predict a step of ``batch`` sentences over all processes that sends ``collectives``."""
    sending = sum(collective.per_step * machine.seconds(collective, processes) for collective in collectives)
    # One sentence more on each process. Left out: the rest of its first and last block of draws.
    slope = work.flops / machine.flops + work.draws / machine.draws
    # Sending is at most SHARE of a step while it is at most SHARE / (1 - SHARE) of the rest.
    rest = sending * (1 - SHARE) / SHARE
    least = max(1, math.ceil((rest - machine.step_overhead) / slope))
    step = machine.step_overhead + math.ceil(batch / processes) * slope + sending
    return Prediction(sending, step, least * processes)


def fit_network(seconds: dict[int, float], ranks: int) -> Network:
    """Fit a ring to the times of all-reduces by their bytes: least relative squares.

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
    """Return operations per second and the overhead of a step in seconds: least relative squares.

    Args:
        seconds: times of steps that neither send nor draw, by sentences per process.

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
            f"the measured {what} times do not grow with their sizes: something else keeps this machine busy;"
            " measure again"
        )
    return solution
