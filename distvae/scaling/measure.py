"""Times of this machine's collectives and training steps, and the constants of ``scaling``'s model that follow.

All processes of a launch call the same functions; a time is the slowest process's, and the median over rounds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from distvae.config.schema import Config
from distvae.distributed.engine import make_engine
from distvae.distributed.runtime import Runtime
from distvae.methods.kl import kl_per_dimension
from distvae.model import draws
from distvae.model.vae import Noise, initialise, model_of
from distvae.scaling.costs import (
    Machine,
    Network,
    Work,
    fit_compute,
    fit_network,
    plain_table,
    predict,
    step_collectives,
)
from distvae.system.errors import UserError

# Bytes of the all-reduces that are timed: 1 KiB to 64 MiB.
SIZES = tuple(4**i * 2**10 for i in range(9))

# Rounds before those that count: in them DDP lays out its buckets, and libraries choose their ways.
WARM_UP = 3


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
    all_reduce, network = {}, Network(0.0, float("inf"))
    if processes > 1:
        values = {size: torch.zeros(size // 4, device=runtime.device) for size in SIZES}
        all_reduce = _seconds(runtime, {size: lambda v=v: runtime.sum(v) for size, v in values.items()}, rounds)
        network = fit_network(all_reduce, processes)
    trainer = Trainer(runtime, config, vocabulary_size, tokens)
    many = 16 * max(each) * processes
    actions: dict[Hashable, Callable[[], object]] = {"draws": lambda: trainer.draw(0, many)}
    actions |= {(n, False): lambda n=n: trainer.step(n, send=False) for n in each}
    if processes > 1:
        actions |= {(n, True): lambda n=n: trainer.step(n, send=True) for n in each}
    seconds = _seconds(runtime, actions, rounds)
    draw_rate = many * work.draws / seconds["draws"]
    flops, overhead = fit_compute({n: seconds[n, False] - n * processes * work.draws / draw_rate for n in each}, work)
    machine = Machine(flops, overhead, draw_rate, 1, network, network)
    collectives = step_collectives(work, "ddp", processes)
    steps = tuple(
        Step(
            each=n,
            alone=seconds[n, False],
            measured=seconds[n, processes > 1],
            predicted=predict(work, collectives, machine, processes, n * processes).step,
        )
        for n in each
    )
    return Measurement(processes, all_reduce, machine, steps)


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


class Trainer:
    """A training step as the program makes it, on sentences of one length made up at random."""

    def __init__(self, runtime: Runtime, config: Config, vocabulary_size: int, tokens: int):
        self.runtime, self.config, self.tokens = runtime, config, tokens
        self.vocabulary_size = vocabulary_size
        self.model = model_of(config, vocabulary_size, pad=0, unknown=1)
        initialise(self.model, config.model, draws.generator("cpu", config.seed, "initial weights"))
        self.model.to(runtime.device)
        self.engine = make_engine(runtime, self.model, config.optimizer, config.speed.embedding_gradients)

    def draw(self, each: int, batch: int) -> Noise:
        """The draws for a global batch, of which this process keeps those of ``each`` sentences."""
        rows, device = slice(self.runtime.rank * each, (self.runtime.rank + 1) * each), self.runtime.device
        return draws.training_noise(self.config.model, rows, batch, self.tokens, device, self.config.seed, "measure")

    def step(self, each: int, send: bool) -> None:
        """A step on ``each`` sentences of every process."""
        with contextlib.nullcontext() if send else self.runtime.accelerator.no_sync(self.engine.module):
            self._step(each)

    def _step(self, each: int) -> None:
        runtime, device = self.runtime, self.runtime.device
        noise = self.draw(each, each * runtime.world_size)
        sentences = torch.randint(2, self.vocabulary_size, (each, self.tokens + 1), device=device)
        lengths = torch.full((each,), self.tokens + 1, device=device)
        re, mean, log_variance = self.engine.module(sentences, lengths, noise)
        loss = (re + kl_per_dimension(mean, log_variance).sum(dim=1)).mean()
        runtime.accelerator.backward(loss)
        self.engine.step()


def _seconds(runtime: Runtime, actions: dict[Hashable, Callable[[], object]], rounds: int) -> dict[Hashable, float]:
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
