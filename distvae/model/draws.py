"""Chance has no rank: every draw depends on the seed, its purpose, the step and the place in the global batch.

A training step's noise is drawn for the whole global batch and each rank keeps its rows; an evaluation draws for each
sentence on its own. So neither the number of ranks, nor micro-batches, chunks or padding, change a single draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from distvae.config.schema import ModelConfig
from distvae.model.vae import Noise


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator on ``device`` whose stream is set by ``key``: the seed, the purpose, the step …"""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def training_noise(
    model: ModelConfig, rows: slice, global_batch: int, steps: int, device: torch.device, *key: int | str
) -> Noise:
    """What a training step draws, for the rows of the global batch that this rank holds.

    Args:
        rows: this rank's rows of the global batch.
        global_batch: sentences in the global batch.
        steps: decoder steps T of the longest sentence of the *global* batch.
        key: seed, stage, epoch, step.

    Returns:
        Noise for ``b = rows.stop - rows.start`` sentences and T steps.
    """

    def keep(purpose: str, probability: float, *shape: int) -> Tensor | None:
        if probability == 0:
            return None
        draws = torch.rand(global_batch, steps, *shape, generator=generator(device, *key, purpose), device=device)
        return draws[rows] >= probability

    latent = torch.randn(global_batch, model.latent_size, generator=generator(device, *key, "latent"), device=device)
    return Noise(
        latent=latent[rows],
        keep_words=keep("word dropout", model.word_dropout),
        keep_embeddings=keep("embedding dropout", model.dropout, model.embedding_size),
        keep_outputs=keep("output dropout", model.dropout, model.hidden_size),
    )


def sentence_noise(sentences: Iterable[int], shape: tuple[int, ...], device: torch.device, *key: int | str) -> Tensor:
    """Standard normal draws of ``shape`` for each sentence, set by its number in the split: [b, *shape]."""
    return torch.stack(
        [torch.randn(shape, generator=generator(device, *key, int(i)), device=device) for i in sentences]
    )
