"""Global batches: the sentences of one optimizer step, planned from the seed and epoch alone, and each rank's slice.

A plan does not know how many ranks there are. Every sentence stands in exactly one batch of an epoch, and at most one
batch is partial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Batches whose sentences are sorted by length together: enough that a batch has hardly any padding.
WINDOW = 64


def training_plan(lengths: np.ndarray, batch_size: int, key: Sequence[int]) -> list[np.ndarray]:
    """An epoch's global batches, as sentence numbers.

    Sentences are shuffled, cut into windows, sorted by length within each, and cut into batches, which are shuffled.

    Args:
        lengths: of all sentences, [N].
        key: non-negative integers (seed, stage, epoch) that set the order.
    """
    rng = np.random.Generator(np.random.PCG64(list(key)))
    order = rng.permutation(len(lengths))
    windows = _cut(order, WINDOW * batch_size)
    order = np.concatenate([window[np.argsort(lengths[window], kind="stable")] for window in windows])
    batches = _cut(order, batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_plan(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of similar length that hold each sentence once."""
    return _cut(np.argsort(lengths, kind="stable"), batch_size)


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Pieces of ``size``, and what is left."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def share(size: int, part: int, parts: int) -> slice:
    """The rows of a batch of ``size`` that fall to one of ``parts``: contiguous, sizes differing by at most one."""
    return slice(size * part // parts, size * (part + 1) // parts)


@dataclass(frozen=True)
class Batch:
    """A rank's slice of a global batch. A slice with no sentence holds one dummy, and ``count`` is 0."""

    tokens: Tensor  # [b, L], ids of <s> … </s>, padded on the right
    lengths: Tensor  # [b]
    rows: slice  # of the global batch
    count: int  # sentences that count: the first ones


def collate(sentences: Sequence[Sequence[int] | np.ndarray], global_batch: np.ndarray, rows: slice, pad: int) -> Batch:
    """The given rows of a global batch as tensors. No rows: the batch's first sentence, as a dummy."""
    count = rows.stop - rows.start
    if count == 0:
        rows = slice(0, 1)
    ids = [sentences[i] for i in global_batch[rows]]
    lengths = [len(row) for row in ids]
    tokens = np.full((len(ids), max(lengths)), pad, dtype=np.int64)
    for padded, row in zip(tokens, ids, strict=True):
        padded[: len(row)] = row
    return Batch(torch.from_numpy(tokens), torch.tensor(lengths), rows, count)
