"""What a training step sends from process to process, and a model of what that costs.

Bytes, the order of gradients and floating-point operations are counted on the real model, in a backward pass without
data. Times come from a model of the machine: a ring inside each node and one across nodes, a step that costs something
whatever its size and something for each sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from distvae.config.schema import CommunicationConfig, Config, ModelConfig
from distvae.model.vae import Noise, TextVAE

MIB = 2**20

# DDP starts to reduce a bucket of gradients when it holds this much: the first, to start early, and the others.
FIRST_BUCKET, BUCKET = MIB, 25 * MIB

# PowerSGD leaves a matrix whole unless its factors are smaller by more than this.
MIN_COMPRESSION = 2

# DeepSpeed's ZeRO 3 keeps weights of up to so many values whole on every rank, and gathers each on its own after the
# step.
PERSISTENT = 100_000

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
    with torch.backends.mkldnn.flags(enabled=False):
        _, flops = _pass_without_data(sizes, vocabulary_size, tokens)
    return Work(tuple(order), flops, draws)


def _pass_without_data(sizes: ModelConfig, vocabulary_size: int, tokens: int) -> tuple[list[Gradient], int]:
    order: list[Gradient] = []
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = TextVAE(sizes, vocabulary_size, pad=0, unknown=1)
        for name, parameter in model.named_parameters():
            gradient = Gradient(name, tuple(parameter.shape))
            register: Callable[..., object] = parameter.register_post_accumulate_grad_hook
            register(lambda _, gradient=gradient: order.append(gradient))
        sentence = torch.zeros(1, tokens + 1, dtype=torch.long)
        outputs = model(sentence, torch.tensor([tokens + 1]), Noise(torch.zeros(1, sizes.latent_size)))
        sum(output.sum() for output in outputs).backward()
    return order, counter.get_total_flops()


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
    buckets: list[tuple[Gradient, ...]] = []
    filling: list[Gradient] = []
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
