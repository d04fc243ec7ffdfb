"""What a training step computes and sends between processes.

Gradients, their order and floating-point operations are counted on the real model, in a backward pass without data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from distvae.config.communication import CommunicationConfig, PowerSGD
from distvae.config.schema import Config, ModelConfig
from distvae.model.draws import Noise
from distvae.model.vae import TextVAE

MIB = 2**20

# Bytes at which DDP closes its first bucket of gradients and the others.
FIRST_BUCKET, BUCKET = MIB, 25 * MIB

# PowerSGD sends a matrix whole unless its factors are smaller by more than this ratio.
MIN_COMPRESSION = 2

# DeepSpeed's ZeRO-3 keeps weights of up to this many values whole on every rank, and gathers each one after the step.
PERSISTENT = 100_000

# Steps between two averages of local SGD where the config sets none.
LOCAL_SGD_STEPS = 8
COMMUNICATION = CommunicationConfig()

Kind = Literal["all_reduce", "reduce_scatter", "all_gather"]
Engine = Literal["ddp", "bf16", "powersgd", "local_sgd", "zero1", "zero3", "fsdp2"]
ENGINES: dict[Engine, str] = {
    "ddp": "DDP",
    "bf16": "DDP, bf16",
    "powersgd": "DDP, PowerSGD",
    "local_sgd": "local SGD",
    "zero1": "ZeRO-1, ZeRO-2",
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
    """What a model computes for one sentence."""

    gradients: tuple[Gradient, ...]  # in the order in which the backward completes them
    flops: int  # of matrix products, forward and backward
    draws: int  # random numbers: z, and the dropout of embeddings, outputs, words and variances

    @property
    def bytes(self) -> int:
        return sum(gradient.bytes for gradient in self.gradients)


def count_work(sizes: ModelConfig, vocabulary_size: int, tokens: int) -> Work:
    """Count the gradients, operations and draws of a sentence of ``tokens`` ids, ``</s>`` included.

    The model runs on tensors without storage, so any size can be counted anywhere.
    """
    draws = sizes.latent_size
    if sizes.dropout:
        draws += tokens * (sizes.embedding_size + sizes.hidden_size)
    if sizes.word_dropout:
        draws += tokens
    if sizes.posterior.variance_dropout:
        draws += sizes.latent_size
    order, _ = _pass_without_data(sizes, vocabulary_size, tokens)
    # oneDNN's LSTM is a single operation, whose matrix products the counter does not see.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        _, flops = _pass_without_data(sizes, vocabulary_size, tokens)
    finally:
        torch._C._set_mkldnn_enabled(enabled)
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
    """A message among all processes."""

    what: str
    kind: Kind
    bytes: int  # of the whole tensor
    per_step: float = 1.0  # how often it is sent


def ddp_buckets(
    gradients: Sequence[Gradient], first: int = FIRST_BUCKET, limit: int = BUCKET
) -> list[tuple[Gradient, ...]]:
    """Return the groups in which DDP reduces gradients from its second step on (its first step sends one).

    A bucket ends with the gradient that brings it to its limit, in bytes.
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
    """Return how many values PowerSGD sends for a bucket: whole gradients, factors P, factors Q."""
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
    """Return what an optimizer step of one micro-batch sends under an engine, after its first few steps.

    ``zero1`` (stages 1 and 2) and ``zero3`` are DeepSpeed 0.19 with its defaults, which sends a model this small in one
    piece; ``fsdp2`` is torch's ``fully_shard`` of the whole model as one unit.

    Args:
        processes: their number; ZeRO and FSDP2 pad what they cut into equal parts.
        communication: sets the rank of PowerSGD's factors, and the steps of local SGD between two averages.
    """
    total = work.bytes
    norm = Collective("norm of the gradient", "all_reduce", 4)
    if engine == "local_sgd":
        return [Collective("weights", "all_reduce", total, 1 / local_steps(communication))]
    if engine == "zero1":
        # Every rank reduces the whole gradient, though it needs a part. All weights are one vector, each part of which
        # holds an even number of values.
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
    if engine == "powersgd":  # which sends one bucket (distributed/runtime.py)
        names = ("gradients left whole", "factors P", "factors Q")
        sizes = powersgd_sizes(work.gradients, powersgd_rank(communication))
        return [Collective(name, "all_reduce", 4 * size) for name, size in zip(names, sizes, strict=True)]
    width = 2 if engine == "bf16" else 4
    return [
        Collective(f"bucket {number}", "all_reduce", width * sum(gradient.size for gradient in bucket))
        for number, bucket in enumerate(ddp_buckets(work.gradients), start=1)
    ]


def _padded(size: int, multiple: int) -> int:
    return multiple * math.ceil(size / multiple)


def local_steps(communication: CommunicationConfig) -> int:
    """Return the steps of local SGD between two averages."""
    return communication.local_sgd_steps or LOCAL_SGD_STEPS


def powersgd_rank(communication: CommunicationConfig) -> int:
    """Return the rank of PowerSGD's factors."""
    compression = communication.compression
    return (compression if isinstance(compression, PowerSGD) else PowerSGD()).powersgd_rank


def method_collectives(config: Config, engine: Engine) -> list[Collective]:
    """Return what the method adds to a step."""
    collectives = []
    if config.kl.policy.needs_step_kl and engine not in ("ddp", "powersgd"):  # whose gradients carry it
        collectives.append(Collective("KL of the step, for γ", "all_reduce", 4))
    if config.kl.free_bits.needs_batch_mean:
        size = 4 * config.model.latent_size
        collectives.append(Collective("batch mean of the KL, for free bits", "all_reduce", size))
    if config.model.posterior.needs_batch and engine != "local_sgd":  # whose ranks normalise over their own sentences
        size = 8 * 3 * config.model.latent_size
        collectives.append(Collective("statistics of the posterior mean", "all_reduce", size))
        collectives.append(Collective("their gradients", "all_reduce", size))
    if config.kl.policy.interval is not None:
        collectives.append(Collective("KL, for soft free bits", "all_reduce", 16, 1 / config.kl.policy.interval))
    return collectives


def epoch_collectives(sizes: ModelConfig, sentences: int) -> list[Collective]:
    """Return what an epoch sends once: its sums, and those of a validation of ``sentences``."""
    collectives = [
        Collective("sums of the epoch", "all_reduce", 8 * (3 + sizes.latent_size)),
        Collective("scores of the validation", "all_reduce", 8 * (6 + 3 * sizes.latent_size) * sentences),
    ]
    if sizes.latent_size:
        collectives.append(Collective("mutual information", "all_reduce", 8 * sentences))
    return collectives
