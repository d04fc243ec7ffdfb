"""Times of this machine's collectives and training steps, and the constants of ``scaling``'s model that follow.

All processes of a launch call the same functions; a time is the slowest process's, and the median over rounds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from rich.table import Table
from torch import Tensor

from distvae.config.schema import Config
from distvae.data.corpus import Sentences
from distvae.distributed.engines import make_engine
from distvae.distributed.runtime import Runtime
from distvae.methods.annealing import Constant
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.objective import Objective
from distvae.model import draws
from distvae.model.draws import Noise
from distvae.model.vae import initialise, model_of
from distvae.scaling.costs import Work, step_collectives
from distvae.scaling.machine import Machine, Network, fit_compute, fit_network, predict
from distvae.scaling.tables import plain_table
from distvae.system.errors import UserError
from distvae.training.step import TrainStep

# Bytes of the all-reduces that are timed: 1 KiB to 64 MiB.
SIZES = tuple(4**i * 2**10 for i in range(9))

# Rounds before those that count: in them DDP lays out its buckets, and libraries choose their ways.
WARM_UP = 3

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Step:
    """A training step, in seconds."""

    each: int  # sentences of a process
    alone: float  # without sending anything
    measured: float
    predicted: tuple[float, float]  # as much sent during the backward as can be; nothing


@dataclass(frozen=True)
class Measurement:
    """What was measured, and what the model makes of it."""

    processes: int
    all_reduce: dict[int, float]  # seconds by bytes; empty in a process alone
    machine: Machine  # every process a node of its own: one ring over all
    steps: tuple[Step, ...]  # under DDP, or in a process alone


def measure(
    runtime: Runtime, config: Config, work: Work, vocabulary_size: int, tokens: int, each: Sequence[int], rounds: int
) -> Measurement:
    """Time all-reduces and training steps of a config's model on random sentences.

    Args:
        work: of the model and ``tokens``.
        each: sentences of a process in the steps that are timed, two sizes or more.
        rounds: that count.

    Raises:
        UserError: the times do not grow with what is done; the processes do not train by plain DDP.
    """
    if runtime.engine not in ("alone", "DDP"):
        raise UserError(
            f"the model of what steps cost is fitted to plain DDP, and these processes run {runtime.engine}"
        )
    processes = runtime.world_size
    all_reduce: dict[int, float] = {}
    network = Network(0.0, float("inf"))
    if processes > 1:
        values = {size: torch.zeros(size // 4, device=runtime.device) for size in SIZES}
        all_reduce = _seconds(runtime, {size: partial(runtime.sum, v) for size, v in values.items()}, rounds)
        network = fit_network(all_reduce, processes)
    random = RandomSteps(runtime, config, vocabulary_size, tokens)
    many = 16 * max(each) * processes
    actions: dict[tuple[int, bool] | str, Callable[[], object]] = {"draws": lambda: random.draw(many)}
    actions |= {(n, False): partial(random.step, n, send=False) for n in each}
    if processes > 1:
        actions |= {(n, True): partial(random.step, n, send=True) for n in each}
    seconds = _seconds(runtime, actions, rounds)
    draw_rate = many * work.draws / seconds["draws"]
    flops, overhead = fit_compute({n: seconds[n, False] - n * processes * work.draws / draw_rate for n in each}, work)
    machine = Machine(flops, overhead, draw_rate, 1, network, network)
    collectives = step_collectives(work, "ddp", processes)
    steps = []
    for n in each:
        predicted = predict(work, collectives, machine, processes, n * processes).step
        if predicted is None:
            raise UserError(f"--each={n}: every process needs a sentence")
        steps.append(Step(n, seconds[n, False], seconds[n, processes > 1], predicted))
    return Measurement(processes, all_reduce, machine, tuple(steps))


def as_dict(found: Measurement) -> dict[str, Any]:
    """Plain values for JSON: bytes and seconds."""
    machine = asdict(found.machine)
    constants = {key: machine[key] for key in ("flops", "step_overhead", "draws")}
    network = machine["across"] if found.all_reduce else None
    steps = [asdict(step) for step in found.steps]
    return {
        "processes": found.processes,
        **constants,
        "network": network,
        "all_reduce": found.all_reduce,
        "steps": steps,
    }


def tables(found: Measurement) -> list[Table]:
    """What was measured beside what the model says."""
    shown = []
    if found.all_reduce:
        network = plain_table("all-reduce, bytes", "measured, ms", "model, ms", "model / measured")
        for size, seconds in found.all_reduce.items():
            model = found.machine.across.seconds("all_reduce", size, found.processes)
            network.add_row(f"{size:,}", f"{seconds * 1e3:.3f}", f"{model * 1e3:.3f}", f"{model / seconds:.2f}")
        shown.append(network)
    steps = plain_table("sentences of a process", "sending nothing, ms", "by DDP, ms", "model, ms", "model / measured")
    for step in found.steps:
        least, most = step.predicted
        steps.add_row(
            f"{step.each}",
            f"{step.alone * 1e3:.1f}",
            f"{step.measured * 1e3:.1f}",
            f"{least * 1e3:.1f} … {most * 1e3:.1f}",
            f"{least / step.measured:.2f} … {most / step.measured:.2f}",
        )
    return [*shown, steps]


class RandomSteps:
    """Training steps on random sentences of one length, ``tokens`` + 1 ids each."""

    def __init__(self, runtime: Runtime, config: Config, vocabulary_size: int, tokens: int):
        self.runtime, self.tokens = runtime, tokens
        self._vocabulary_size = vocabulary_size
        self.model = model_of(config, vocabulary_size, pad=0, unknown=1)
        initialise(self.model, config.model, draws.generator("cpu", config.seed, "initial weights"))
        self.model.to(runtime.device)
        self._engine = make_engine(runtime, self.model, config.optimizer, config.speed.embedding_gradients)
        self._train_step = TrainStep(runtime, self._engine, config, pad=0)
        self._objective = Objective(Constant(), NoFreeBits(), runtime.device)
        self._sentences: dict[int, Sentences] = {}

    def draw(self, batch: int) -> Noise:
        """Draw the noise of a global batch, as every step does."""
        return self._train_step.noise(slice(0, 0), batch, self.tokens, "measure")

    def step(self, each: int, send: bool) -> None:
        """Make a step on ``each`` sentences per process."""
        batch = np.arange(each * self.runtime.world_size)
        if each not in self._sentences:
            self._sentences[each] = self._random(len(batch))
        with contextlib.nullcontext() if send else self.runtime.accelerator.no_sync(self._engine.module):
            self._train_step(self._sentences[each], batch, ("measure", 1, 1), self._objective)

    def _random(self, count: int) -> Sentences:
        ids = np.random.default_rng(0).integers(2, self._vocabulary_size, (count, self.tokens + 1))
        return Sentences(Dataset.from_dict({"ids": list(ids)}))


def _seconds(runtime: Runtime, actions: dict[Key, Callable[[], object]], rounds: int) -> dict[Key, float]:
    """Time each action; all take turns, so that what else the machine does falls on all."""
    device = runtime.device
    times = torch.zeros(runtime.world_size, len(actions), rounds, dtype=torch.float64, device=device)
    for number in range(-WARM_UP, rounds):
        for i, action in enumerate(actions.values()):
            runtime.sum(torch.zeros(1, device=device))  # all start together
            wait(device)
            started = time.perf_counter()
            action()
            wait(device)
            if number >= 0:
                times[runtime.rank, i, number] = time.perf_counter() - started
    slowest: Tensor = runtime.sum(times).amax(dim=0)
    return dict(zip(actions, slowest.median(dim=1).values.tolist(), strict=True))


def wait(device: torch.device) -> None:
    """Until it has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
