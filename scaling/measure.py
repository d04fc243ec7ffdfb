"""Measured times of this machine's collectives and training steps, and the constants of the model that fit them.

All processes of a launch call the same functions. A time is the slowest process's, and the median over rounds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from distvae.config.schema import Config
from distvae.data.sentences import Sentences
from distvae.distributed.engines import make_engine
from distvae.distributed.runtime import Runtime
from distvae.methods.annealing import Constant
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.objective import Objective
from distvae.model import draws
from distvae.model.draws import Noise
from distvae.model.vae import initialise, model_of
from distvae.system.errors import UserError
from distvae.training.step import TrainStep
from scaling.costs import count_work, step_collectives
from scaling.machine import ASSUMED, Machine, fit_compute, fit_network, predict

# Bytes of the all-reduces that are timed: 1 KiB to 64 MiB.
SIZES = tuple(4**i * 2**10 for i in range(9))

# Rounds before those that count: DDP lays out its buckets, and libraries choose their algorithms.
WARM_UP = 3

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Step:
    """Times of a training step, in seconds."""

    each: int  # sentences per process
    alone: float  # without sending
    measured: float  # with it, under DDP
    predicted: float


@dataclass(frozen=True)
class Measurement:
    """Measured times beside the model that is fitted to them."""

    processes: int
    all_reduce: dict[int, float]  # seconds by bytes; empty for one process
    machine: Machine  # each process is a node of its own; for one process, the assumed networks
    steps: tuple[Step, ...]


def measure(
    runtime: Runtime, config: Config, vocabulary_size: int, tokens: int, each: Sequence[int], rounds: int
) -> Measurement:
    """Time all-reduces and training steps of a config's model on random sentences.

    Args:
        tokens: length of a sentence, ``</s>`` included.
        each: sentences per process of the steps to time, at least two sizes.
        rounds: how many are timed.

    Raises:
        UserError: the times do not grow with the sizes; the processes do not train by plain DDP.
    """
    if runtime.engine not in ("alone", "DDP"):
        raise UserError(f"the model of a step's time is fitted to plain DDP, and these processes run {runtime.engine}")
    processes, work = runtime.world_size, count_work(config.model, vocabulary_size, tokens)
    all_reduce: dict[int, float] = {}
    machine = ASSUMED
    if processes > 1:
        values = {size: torch.zeros(size // 4, device=runtime.device) for size in SIZES}
        all_reduce = _seconds(runtime, {size: partial(runtime.sum, v) for size, v in values.items()}, rounds)
        network = fit_network(all_reduce, processes)
        machine = replace(machine, per_node=1, inside=network, across=network)
    random = RandomSteps(runtime, config, vocabulary_size, tokens)
    many = 16 * max(each) * processes
    actions: dict[tuple[int, bool] | str, Callable[[], object]] = {"draws": lambda: random.draw(many)}
    actions |= {(n, False): partial(random.step, n, send=False) for n in each}
    if processes > 1:
        actions |= {(n, True): partial(random.step, n, send=True) for n in each}
    seconds = _seconds(runtime, actions, rounds)
    rate = many * work.draws / seconds["draws"]
    flops, overhead = fit_compute({n: seconds[n, False] - n * work.draws / rate for n in each}, work)
    machine = replace(machine, flops=flops, step_overhead=overhead, draws=rate)
    sent = step_collectives(work, "ddp", processes)
    steps = (
        Step(
            n, seconds[n, False], seconds[n, processes > 1], predict(work, sent, machine, processes, n * processes).step
        )
        for n in each
    )
    return Measurement(processes, all_reduce, machine, tuple(steps))


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
        """Draw the noise of ``batch`` sentences, as a step does for those of its process."""
        return self._train_step.noise(slice(0, batch), batch, self.tokens, "measure")

    def step(self, each: int, send: bool) -> None:
        """Make a step on ``each`` sentences per process."""
        batch = np.arange(each * self.runtime.world_size)
        if each not in self._sentences:
            self._sentences[each] = self._random(len(batch))
        with contextlib.nullcontext() if send else self.runtime.accelerator.no_sync(self._engine.module):
            self._train_step(self._sentences[each], batch, ("measure", 1, 1), self._objective)

    def _random(self, count: int) -> Sentences:
        ids = np.random.default_rng(0).integers(2, self._vocabulary_size, (count, self.tokens + 1))
        return Sentences.of(list(ids))


def _seconds(runtime: Runtime, actions: dict[Key, Callable[[], object]], rounds: int) -> dict[Key, float]:
    """Time each action. They take turns, so that other load on the machine affects all alike."""
    device = runtime.device
    times = torch.zeros(runtime.world_size, len(actions), rounds, dtype=torch.float64, device=device)
    for number in range(-WARM_UP, rounds):
        for i, action in enumerate(actions.values()):
            runtime.sum(torch.zeros(1, device=device))  # start together
            wait(device)
            started = time.perf_counter()
            action()
            wait(device)
            if number >= 0:
                times[runtime.rank, i, number] = time.perf_counter() - started
    slowest: Tensor = runtime.sum(times).amax(dim=0)
    return dict(zip(actions, slowest.median(dim=1).values.tolist(), strict=True))


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
