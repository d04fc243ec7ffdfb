"""Each rank's slice of a global batch, the sentences of one optimizer step, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
