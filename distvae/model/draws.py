"""Random draws that do not depend on the rank, only on the seed, the purpose, the step and the place in a batch.

The noise of a training step is drawn in blocks of rows of the global batch, and each rank draws those that hold its
rows. Evaluation draws for each sentence separately. So the number of ranks, micro-batches, chunks and padding change no
draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distvae.config.schema import ModelConfig

# Rows of the global batch that are drawn together. Fewer would waste less where a rank's rows do not end with a block,
# but each block costs a generator.
BLOCK = 32


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


def seed_of_numpy(seed: int) -> int:
    """Return a seed for scikit-learn, which takes only 32 bits: a smaller seed itself, and a hash of a larger one."""
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


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

    drawn = blocks(rows, global_batch)

    def draw(purpose: str, *shape: int, normal: bool = False) -> Tensor:
        draws = torch.empty(drawn.stop - drawn.start, *shape, device=device)
        for start in range(drawn.start, drawn.stop, BLOCK):
            block = draws[start - drawn.start :][:BLOCK]
            # The first block has no number, so that a batch of one block draws what it always did.
            source = generator(device, *key, purpose, *([start] if start else []))
            block.normal_(generator=source) if normal else block.uniform_(generator=source)
        return draws[rows.start - drawn.start : rows.stop - drawn.start]

    def keep(purpose: str, probability: float, *shape: int) -> Tensor | None:
        return None if probability == 0 else draw(purpose, *shape) >= probability

    return Noise(
        latent=draw("latent", model.latent_size, normal=True),
        keep_words=keep("word dropout", model.word_dropout, steps),
        keep_embeddings=keep("embedding dropout", model.dropout, steps, model.embedding_size),
        keep_outputs=keep("output dropout", model.dropout, steps, model.hidden_size),
        keep_variances=keep("variance dropout", model.posterior.variance_dropout, model.latent_size),
    )


def blocks(rows: slice, global_batch: int) -> slice:
    """Return the rows of the blocks that hold some rows of a global batch; none for none."""
    if rows.stop <= rows.start:
        return rows
    return slice(rows.start // BLOCK * BLOCK, min(-(-rows.stop // BLOCK) * BLOCK, global_batch))


def sentence_noise(sentences: Iterable[int], shape: tuple[int, ...], device: torch.device, *key: int | str) -> Tensor:
    """Return standard normal draws [b, *shape]; each sentence's depend on its number in the split and ``key``."""
    return torch.stack(
        [torch.randn(shape, generator=generator(device, *key, int(i)), device=device) for i in sentences]
    )
