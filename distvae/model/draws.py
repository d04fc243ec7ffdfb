"""Random draws that do not depend on the rank, only on the seed, the purpose, the step and the place in a batch.

The noise of a training step is drawn for the whole global batch, and each rank keeps its rows. Evaluation draws for
each sentence separately. So the number of ranks, micro-batches, chunks and padding change no draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distvae.config.schema import ModelConfig


@dataclass(frozen=True)
class Noise:
    """The draws of a training forward. Masks are True where a value is kept; None drops nothing."""

    latent: Tensor  # [b, m], standard normal
    keep_words: Tensor | None = None  # [b, T]
    keep_embeddings: Tensor | None = None  # [b, T, E]
    keep_outputs: Tensor | None = None  # [b, T, H]
    keep_variances: Tensor | None = None  # [b, m]

    def rows(self, rows: slice) -> Noise:
        """Return the noise of some of the sentences."""
        return replace(self, **{name: draws[rows] for name, draws in vars(self).items() if draws is not None})


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a generator on ``device`` that is seeded by ``key``: the seed, the purpose, the step …"""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def training_noise(
    model: ModelConfig, rows: slice, global_batch: int, steps: int, device: torch.device, *key: int | str
) -> Noise:
    """Draw the noise of a training step for this rank's rows of the global batch.

    Args:
        model: sizes and dropout rates.
        rows: this rank's rows of the global batch.
        global_batch: sentences in the global batch.
        steps: decoder steps T of the longest sentence of the *global* batch.
        device: of the draws.
        key: seed, stage, epoch, step.

    Returns:
        Noise for ``b = rows.stop - rows.start`` sentences and T steps.
    """

    def keep(purpose: str, probability: float, *shape: int) -> Tensor | None:
        if probability == 0:
            return None
        draws = torch.rand(global_batch, *shape, generator=generator(device, *key, purpose), device=device)
        return draws[rows] >= probability

    latent = torch.randn(global_batch, model.latent_size, generator=generator(device, *key, "latent"), device=device)
    return Noise(
        latent=latent[rows],
        keep_words=keep("word dropout", model.word_dropout, steps),
        keep_embeddings=keep("embedding dropout", model.dropout, steps, model.embedding_size),
        keep_outputs=keep("output dropout", model.dropout, steps, model.hidden_size),
        keep_variances=keep("variance dropout", model.posterior.variance_dropout, model.latent_size),
    )


def sentence_noise(sentences: Iterable[int], shape: tuple[int, ...], device: torch.device, *key: int | str) -> Tensor:
    """Return standard normal draws [b, *shape]; each sentence's depend on its number in the split and ``key``."""
    return torch.stack(
        [torch.randn(shape, generator=generator(device, *key, int(i)), device=device) for i in sentences]
    )
