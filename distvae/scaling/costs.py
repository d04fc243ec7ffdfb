"""What a training step sends from process to process, and a model of what that costs.

Bytes, the order of gradients and floating-point operations are counted on the real model, in a backward pass without
data. Times come from a model of the machine: a ring inside each node and one across nodes, a step that costs something
whatever its size and something for each sentence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from distvae.config.schema import CommunicationConfig, Config, ModelConfig
from distvae.model.vae import Noise, TextVAE
from distvae.system.errors import UserError

MIB = 2**20

# DDP starts to reduce a bucket of gradients when it holds this much: the first, to start early, and the others.
FIRST_BUCKET, BUCKET = MIB, 25 * MIB

# PowerSGD leaves a matrix whole unless its factors are smaller by more than this.
MIN_COMPRESSION = 2

# DeepSpeed's ZeRO 3 keeps weights of up to so many values whole on every rank, and gathers each on its own after the
# step.
PERSISTENT = 100_000

# What a backward takes of a step's arithmetic; gradients can travel meanwhile.
BACKWARD = 2 / 3

# What is asked of local SGD where the config does not say: steps between two averages.
LOCAL_SGD_STEPS = 8

COMMUNICATION = CommunicationConfig()

Kind = Literal["all_reduce", "reduce_scatter", "all_gather"]
Engine = Literal["ddp", "bf16", "powersgd", "local_sgd", "zero1", "zero2", "zero3", "fsdp2"]
ENGINES: dict[Engine, str] = {
    "ddp": "DDP",
    "bf16": "DDP, bf16",
    "powersgd": "DDP, PowerSGD",
    "local_sgd": "local SGD",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "fsdp2": "FSDP2",
}


# -- What there is to send ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradient:
    """The float32 gradient of one weight."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return 4 * self.size


@dataclass(frozen=True)
class Work:
    """What one sentence asks of a model."""

    gradients: tuple[Gradient, ...]  # in the order in which a backward completes them
    flops: int  # of matrix products, forward and backward
    draws: int  # random numbers: z, and the dropout of embeddings, outputs and words

    @property
    def bytes(self) -> int:
        return sum(gradient.bytes for gradient in self.gradients)


def count_work(sizes: ModelConfig, vocabulary_size: int, tokens: int) -> Work:
    """Count gradients, operations and draws of a sentence of ``tokens`` words and ``</s>``.

    The model runs on tensors that have shapes and no storage, so any size can be counted anywhere.
    """
    draws = sizes.latent_size
    if sizes.dropout:
        draws += tokens * (sizes.embedding_size + sizes.hidden_size)
    if sizes.word_dropout:
        draws += tokens
    order, _ = _pass_without_data(sizes, vocabulary_size, tokens)
    # oneDNN's LSTM is a single operation, whose matrix products no counter sees.
    onednn = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        _, flops = _pass_without_data(sizes, vocabulary_size, tokens)
    finally:
        torch.backends.mkldnn.set_flags(_enabled=onednn)
    return Work(tuple(order), flops, draws)


def _pass_without_data(sizes: ModelConfig, vocabulary_size: int, tokens: int) -> tuple[list[Gradient], int]:
    order: list[Gradient] = []
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = TextVAE(sizes, vocabulary_size, pad=0, unknown=1)
        for name, parameter in model.named_parameters():
            gradient = Gradient(name, tuple(parameter.shape))
            parameter.register_post_accumulate_grad_hook(lambda _, gradient=gradient: order.append(gradient))
        sentence = torch.zeros(1, tokens + 1, dtype=torch.long)
        outputs = model(sentence, torch.tensor([tokens + 1]), Noise(torch.zeros(1, sizes.latent_size)))
        sum(output.sum() for output in outputs).backward()
    return order, counter.get_total_flops()


# -- What is sent ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collective:
    """One kind of message among all processes. ``bytes`` is what each process holds of it when it is whole."""

    what: str
    kind: Kind
    bytes: int
    per_step: float = 1.0  # how often
    overlaps: bool = False  # travels while the backward goes on


def ddp_buckets(
    gradients: Sequence[Gradient], first: int = FIRST_BUCKET, limit: int = BUCKET
) -> list[tuple[Gradient, ...]]:
    """The groups in which DDP reduces gradients from its second step on (its first step sends all at once).

    A bucket is closed by the gradient with which it reaches its limit, in bytes.
    """
    buckets, filling = [], []
    for gradient in gradients:
        filling.append(gradient)
        if sum(g.bytes for g in filling) >= (limit if buckets else first):
            buckets.append(tuple(filling))
            filling = []
    return [*buckets, tuple(filling)] if filling else buckets


def powersgd_sizes(gradients: Sequence[Gradient], rank: int) -> tuple[int, int, int]:
    """Values that PowerSGD sends in place of a bucket: those left whole, the factors P, the factors Q."""
    whole = p = q = 0
    for gradient in gradients:
        rows, columns = gradient.shape[0], math.prod(gradient.shape[1:])
        r = min(rows, columns, rank)
        if (rows + columns) * r * MIN_COMPRESSION < rows * columns:
            p, q = p + rows * r, q + columns * r
        else:
            whole += gradient.size
    return whole, p, q


def step_collectives(
    work: Work, engine: Engine, processes: int, communication: CommunicationConfig = COMMUNICATION
) -> list[Collective]:
    """What an optimizer step of one micro-batch sends under an engine, once it runs in its stride.

    ``zero1`` to ``zero3`` are DeepSpeed 0.19 with its defaults, which sends a model this small in one piece; ``fsdp2``
    is torch's ``fully_shard`` of the whole model as one unit. ``powersgd`` is what comes after its first, whole steps.

    Args:
        processes: how many; ZeRO and FSDP2 pad what they cut into equal parts.
        communication: the rank of PowerSGD's factors, and the steps of local SGD between two averages.
    """
    total = work.bytes
    norm = Collective("norm of the gradient", "all_reduce", 4)
    if engine == "local_sgd":
        return [Collective("weights", "all_reduce", total, 1 / local_steps(communication))]
    if engine in ("zero1", "zero2"):
        # The gradient is reduced whole on every rank, though each needs a part.
        # All weights are one vector, each part of which holds an even number of values.
        weights = 4 * _padded(total // 4, 2 * processes)
        return [Collective("gradients", "all_reduce", total), Collective("weights", "all_gather", weights), norm]
    if engine == "zero3":
        padded = {gradient: 4 * _padded(gradient.size, processes) for gradient in work.gradients}
        small = [gradient for gradient in work.gradients if gradient.size <= PERSISTENT]
        return [
            Collective("weights", "all_gather", sum(padded.values()) - sum(padded[g] for g in small)),
            Collective("gradients", "reduce_scatter", sum(padded.values())),
            *(Collective(f"{g.name} after the step", "all_gather", padded[g]) for g in small),
            Collective("norm of the gradient", "all_reduce", 8),
        ]
    if engine == "fsdp2":
        whole = sum(g.bytes // g.shape[0] * _padded(g.shape[0], processes) for g in work.gradients)
        return [
            Collective("weights for the forward", "all_gather", whole),
            Collective("weights for the backward", "all_gather", whole),
            Collective("gradients", "reduce_scatter", whole),
            Collective("norms of the gradients", "all_reduce", 4 * len(work.gradients)),
        ]
    collectives = []
    # PowerSGD gets one bucket (runtime.py).
    buckets = [work.gradients] if engine == "powersgd" else ddp_buckets(work.gradients)
    for number, bucket in enumerate(buckets, start=1):
        # The last bucket waits for the end of the backward.
        overlaps, name = number < len(buckets), f"bucket {number}"
        if engine == "powersgd":
            parts = zip(
                ("left whole", "factors P", "factors Q"),
                powersgd_sizes(bucket, communication.powersgd_rank),
                strict=True,
            )
            collectives += [
                Collective(f"{name}, {part}", "all_reduce", 4 * size, overlaps=overlaps) for part, size in parts
            ]
        else:
            size = sum(g.size for g in bucket)
            collectives.append(Collective(name, "all_reduce", (2 if engine == "bf16" else 4) * size, overlaps=overlaps))
    return collectives


def _padded(size: int, multiple: int) -> int:
    return multiple * math.ceil(size / multiple)


def local_steps(communication: CommunicationConfig) -> int:
    """Steps of local SGD between two averages."""
    return communication.local_sgd_steps or LOCAL_SGD_STEPS


def method_collectives(config: Config) -> list[Collective]:
    """What the method adds to a step, whatever the engine."""
    collectives = []
    if config.kl.free_bits.needs_batch_mean:
        size = 4 * config.model.latent_size
        collectives.append(Collective("batch mean of the KL, for free bits", "all_reduce", size))
    if config.kl.policy.interval is not None:
        collectives.append(Collective("KL, for soft free bits", "all_reduce", 16, 1 / config.kl.policy.interval))
    return collectives


def epoch_collectives(sizes: ModelConfig, sentences: int) -> list[Collective]:
    """What an epoch adds, each once: its sums, and those of a validation of so many sentences."""
    return [
        Collective("sums of the epoch", "all_reduce", 8 * (3 + sizes.latent_size)),
        Collective("scores of the validation", "all_reduce", 8 * (6 + 3 * sizes.latent_size) * sentences),
        Collective("mutual information", "all_reduce", 8 * sentences),
    ]


# -- What it costs -----------------------------------------------------------------------------------------------------


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


# -- Constants from measurements ---------------------------------------------------------------------------------------


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
    solution = np.linalg.lstsq(np.stack(columns, 1) / times[:, None], np.ones(len(times)), rcond=None)[0]
    if (solution <= 0).any():
        raise UserError(
            f"the measured {what} times do not grow as their sizes do: something else keeps this machine busy; measure"
            " again"
        )
    return solution


# -- What is shown -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What a table of predictions is asked."""

    config: Config
    vocabulary_size: int
    tokens: int  # words and ``</s>`` of a sentence
    machine: Machine
    processes: tuple[int, ...]

    def collectives(self, work: Work, engine: Engine, processes: int) -> list[Collective]:
        """All that a step sends."""
        sent = step_collectives(work, engine, processes, self.config.communication)
        return sent + method_collectives(self.config)


def as_dict(question: Question) -> dict[str, Any]:
    """Plain values for JSON: bytes and seconds."""
    work, batch = _work(question), question.config.optimizer.batch_size
    return {
        "gradients": [asdict(gradient) | {"bytes": gradient.bytes} for gradient in work.gradients],
        "flops": work.flops,
        "draws": work.draws,
        "machine": asdict(question.machine),
        "predictions": [
            {
                "engine": engine,
                "processes": processes,
                "collectives": [asdict(collective) for collective in collectives],
                **asdict(predict(work, collectives, question.machine, processes, batch)),
            }
            for processes in question.processes
            for engine in ENGINES
            for collectives in [question.collectives(work, engine, processes)]
        ],
    }


def tables(question: Question) -> list[Table | str]:
    """What a step sends, and what it is predicted to take, with remarks between."""
    work = _work(question)
    return [
        _gradient_table(work),
        f"a sentence of {question.tokens} tokens: {work.flops / 1e9:.3f} GFLOP, and {work.draws:,} random numbers on"
        " every process",
        _collective_table(question, work),
        *_epoch_remarks(question.config),
        _prediction_table(question, work),
        "a … b: sending hidden behind the backward as far as it can be … not at all; batches are global",
    ]


def plain_table(*columns: str) -> Table:
    """A table of numbers, whose first column says what they are of."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _work(question: Question) -> Work:
    return count_work(question.config.model, question.vocabulary_size, question.tokens)


def _gradient_table(work: Work) -> Table:
    table = plain_table("gradient, as the backward completes it", "shape", "bytes", "share")
    buckets = ddp_buckets(work.gradients)
    for bucket in buckets:
        for gradient in bucket:
            shape = " × ".join(f"{n:,}" for n in gradient.shape)
            last = gradient is bucket[-1]
            table.add_row(
                gradient.name, shape, f"{gradient.bytes:,}", f"{gradient.bytes / work.bytes:.1%}", end_section=last
            )
    table.add_row(f"all, in {len(buckets)} buckets of DDP", "", f"{work.bytes:,}", "")
    return table


def _collective_table(question: Question, work: Work) -> Table:
    processes = question.processes[0]
    table = plain_table(f"a step of {processes} processes sends", "collectives", "bytes", "of DDP’s ring")
    ring = sum(_passes(c) for c in step_collectives(work, "ddp", processes))
    for engine in ENGINES:
        sent = step_collectives(work, engine, processes, question.config.communication)
        counts = Counter(c.kind.replace("_", "-") for c in sent)
        every = f" every {local_steps(question.config.communication)} steps" if engine == "local_sgd" else ""
        table.add_row(
            _title(question, engine),
            ", ".join(f"{count} {kind}" for kind, count in counts.items()) + every,
            f"{sum(c.bytes * c.per_step for c in sent):,.0f}",
            f"{sum(_passes(c) for c in sent) / ring:.1%}",
        )
    for c in method_collectives(question.config):
        every = "" if c.per_step == 1 else f" every {1 / c.per_step:.0f} steps"
        table.add_row(f"{c.what}, with each of these", f"1 all-reduce{every}", f"{c.bytes:,}", "")
    return table


def _passes(collective: Collective) -> float:
    """Bytes times how often a ring passes them around."""
    return collective.bytes * collective.per_step * (2 if collective.kind == "all_reduce" else 1)


def _epoch_remarks(config: Config) -> list[str]:
    sums, *validation = epoch_collectives(config.model, 1)
    a_sentence = " + ".join(f"{c.bytes:,}" for c in validation)
    return [
        f"an epoch: {sums.bytes:,} bytes of sums, {a_sentence} bytes a sentence of the validation; 3 all-reduces;"
        " about once a second 48 bytes of flags"
    ]


def _prediction_table(question: Question, work: Work) -> Table:
    batch = question.config.optimizer.batch_size
    table = plain_table(
        "predicted",
        "sending, ms",
        f"step at batch {batch:,}, ms",
        "sentences/s",
        "sending < 10% from batch",
        "sentences/s",
    )
    for processes in dict.fromkeys((1, *question.processes)):
        for engine in ENGINES if processes > 1 else ("ddp",):
            collectives = question.collectives(work, engine, processes)
            found = predict(work, collectives, question.machine, processes, batch)
            title = f"{processes} × {_title(question, engine)}" if processes > 1 else "1 process"
            rate = None if found.step is None else [batch / seconds for seconds in found.step]
            rate_then = [size / seconds for size, seconds in zip(found.least_batch, found.least_step, strict=True)]
            table.add_row(
                title,
                f"{found.communication * 1e3:.2f}",
                "too few" if found.step is None else _span(found.step, 1e3, ".2f"),
                "" if rate is None else _span(rate, 1, ",.0f"),
                _span(found.least_batch, 1, ",d"),
                _span(rate_then, 1, ",.0f"),
                end_section=processes == 1 or engine == "fsdp2",
            )
    return table


def _title(question: Question, engine: Engine) -> str:
    if engine == "powersgd":
        return f"{ENGINES[engine]} of rank {question.config.communication.powersgd_rank}"
    if engine == "local_sgd":
        return f"{ENGINES[engine]}, {local_steps(question.config.communication)} steps"
    return ENGINES[engine]


def _span(pair: Sequence[float], factor: int | float, form: str) -> str:
    ends = [format(factor * value, form) for value in pair]
    return ends[0] if ends[0] == ends[1] else " … ".join(ends)
