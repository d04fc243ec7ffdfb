"""The token ids of a split."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import overload

import numpy as np
import pyarrow as pa


def view(numbers: pa.Array) -> np.ndarray:
    """Return a read-only view of an Arrow array without nulls."""
    values = np.from_dlpack(numbers)  # `numbers.to_numpy()` would import pandas
    values.flags.writeable = False
    return values


class Sentences(Sequence[np.ndarray]):
    """Read-only token ids of a split: int32 [length] views of Arrow, which may be memory-mapped.

    Args:
        ids: column of lists of int32.
        characters: of each sentence, see below.

    Attributes:
        lengths: int32 [N], tokens of each sentence, ``<s>`` and ``</s>`` included.
        characters: int32 [N], characters of each sentence and one for its end; None: a corpus by the Treebank rules,
            which older versions built without.
    """

    def __init__(self, ids: pa.ChunkedArray, characters: np.ndarray | None = None):
        self.characters = characters
        chunks = ids.chunks
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = [
            (view(chunk.values), view(chunk.offsets)) for chunk in chunks
        ]
        self._firsts: list[int] = np.cumsum([0] + [len(chunk) for chunk in chunks]).tolist()
        self.lengths = np.empty(self._firsts[-1], dtype=np.int32)
        for first, (_, offsets) in zip(self._firsts, self._chunks, strict=False):
            np.subtract(offsets[1:], offsets[:-1], out=self.lengths[first : first + len(offsets) - 1])

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], characters: np.ndarray | None = None) -> Sentences:
        """Return sentences that are in memory."""
        return cls(pa.chunked_array([pa.array(ids, pa.list_(pa.int32()))]), characters)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return one sentence, or those of a slice; negative numbers raise IndexError."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self.lengths):
            raise IndexError(f"sentence {index} of {len(self.lengths)}")
        chunk = bisect_right(self._firsts, index) - 1
        values, offsets = self._chunks[chunk]
        row = index - self._firsts[chunk]
        return values[offsets[row] : offsets[row + 1]]
