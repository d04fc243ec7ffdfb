"""Engines: the ways to carry out a training step (DDP, local SGD, DeepSpeed ZeRO, FSDP2).

All engines minimise the same objective in the same precision: weights, gradient sums and updates are float32, and bf16
is autocast in the forward. An engine decides where tensors are stored and what is sent, not what is computed. An engine
that shards the weights keeps the trainer's model as a full replica, which ``gather`` and ``scatter`` keep in sync.
"""

from __future__ import annotations

from torch import nn

from distvae.config.schema import SGD, OptimizerConfig
from distvae.distributed.engines.base import (
    Engine,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
    set_moving,
)
from distvae.distributed.engines.replicated import Replicated
from distvae.distributed.engines.zero import Zero
from distvae.distributed.runtime import Runtime
from distvae.distributed.sums import sum_over_ranks
from distvae.model.batch_norm import BatchNorm
from distvae.model.vae import TextVAE
from distvae.system.errors import UserError

__all__ = [
    "Engine", "Replicated", "Zero", "load_optimizer_state", "make_engine", "optimizer_state", "set_learning_rate",
    "set_moving",
]  # fmt: skip


def make_engine(
    runtime: Runtime,
    model: TextVAE,
    settings: OptimizerConfig,
    embedding_gradients: str = "auto",
    carries: bool = False,
    apart: bool = False,
) -> Engine:
    """Return the engine that the launcher asks for.

    Args:
        model: with the same weights on every rank.
        embedding_gradients: ``speed.embedding_gradients``.
        carries: have a ``carrier``, where gradients are averaged without loss.
        apart: let ``set_moving`` choose a part of the model.

    Raises:
        UserError: ``embedding_gradients`` is "rows", but row gradients would not give the same steps.
    """
    rows = isinstance(settings.algorithm, SGD) and runtime.device.type == "cpu" and runtime.engine == "alone"
    if embedding_gradients == "rows" and not rows:
        raise UserError(
            "speed.embedding_gradients=rows needs optimizer.name=sgd and a single process on a CPU, not "
            f"{settings.algorithm.name} and {runtime.processes} on {runtime.device.type}; auto uses rows where possible"
        )
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            part.sparse = rows and embedding_gradients != "dense"
    if runtime.world_size > 1 and runtime.communication.local_sgd_steps is None:
        # Under local SGD each process steps by its own share of the batch.
        for layer in model.modules():
            if isinstance(layer, BatchNorm):
                layer.sum_over_ranks = sum_over_ranks
    if runtime.zero_stage is not None:
        return Zero(runtime, model, settings, apart)
    if runtime.fsdp:
        # Late, because FSDP2 imports sympy, and a fifth of the start of every training would be spent on that.
        from distvae.distributed.engines.fsdp import FullySharded

        return FullySharded(runtime, model, settings, apart)
    return Replicated(runtime, model, settings, carries, apart)
