"""Global batches, each the sentences of one optimizer step, and each rank's slice of them.

A plan depends on the seed and epoch, not on the number of ranks. Each epoch has every sentence
in one batch, and at most one partial batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

# Number of batches whose sentences are sorted by length together: enough for hardly any padding.
WINDOW = 64


class Plan(Sequence[np.ndarray]):
    """Batches of sentence numbers, created on access as views of one order of all sentences.

    Args:
        order: sentence numbers, [N].
        size: sentences per batch; the last piece of ``order`` may have fewer.
        batches: numbers of the pieces of ``order``, one per batch.
    """

    def __init__(self, order: np.ndarray, size: int, batches: np.ndarray):
        self._order, self._size, self._batches = order, size, batches

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> Plan: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | Plan:
        if isinstance(index, slice):
            return Plan(self._order, self._size, self._batches[index])
        start = int(self._batches[index]) * self._size
        return self._order[start : start + self._size]


def training_plan(lengths: np.ndarray, batch_size: int, key: Sequence[int]) -> Plan:
    """Return the global batches of an epoch.

    Sentences are shuffled, cut into windows, sorted by length within each, and cut into batches, which are shuffled.

    Args:
        lengths: tokens of each sentence, [N].
        key: non-negative integers (seed, stage, epoch) that determine the order.
    """
    rng = np.random.Generator(np.random.PCG64(list(key)))
    # The largest array of an epoch: shuffled and sorted in place, with 4 bytes per sentence if these suffice.
    order = np.arange(len(lengths), dtype=np.int32 if len(lengths) < 2**31 else np.int64)
    rng.shuffle(order)
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window[:] = window[np.argsort(lengths[window], kind="stable")]
    return Plan(order, batch_size, rng.permutation(_pieces(order, batch_size)))


def evaluation_plan(lengths: np.ndarray, batch_size: int) -> Plan:
    """Return batches of sentences of similar length that contain each sentence once."""
    order = np.argsort(lengths, kind="stable")
    return Plan(order, batch_size, np.arange(_pieces(order, batch_size)))


def _pieces(order: np.ndarray, size: int) -> int:
    return -(-len(order) // size)


def share(size: int, part: int, parts: int) -> slice:
    """Return the rows of part number ``part``. Parts are contiguous, and their sizes differ by at most one."""
    return slice(size * part // parts, size * (part + 1) // parts)


@dataclass(frozen=True)
class Batch:
    """A rank's slice of a global batch. An empty slice has one dummy sentence, and ``count`` is 0."""

    tokens: Tensor  # [b, L], ids of <s> … </s>, padded on the right
    lengths: Tensor  # [b]
    rows: slice  # in the global batch
    count: int  # sentences that are not dummies


def collate(sentences: Sequence[Sequence[int] | np.ndarray], global_batch: np.ndarray, rows: slice, pad: int) -> Batch:
    """Return the given rows of a global batch as tensors. If there are none, its first sentence is the dummy."""
    count = rows.stop - rows.start
    if count == 0:
        rows = slice(0, 1)
    ids = [sentences[i] for i in global_batch[rows].tolist()]
    lengths = np.array([len(row) for row in ids])
    held = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(held.shape, pad, dtype=np.int64)
    tokens[held] = np.concatenate(ids)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(lengths), rows, count)
