"""The token ids of a split: of one that is opened whole, and of one in shards that are opened when needed."""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import overload

import numpy as np
import pyarrow as pa
import xxhash

from distvae.data.plans import GROUP, Plan, block_plan, training_plan
from distvae.system.errors import UserError

# Shards that a process keeps open: those of a group, whose blocks lie in one shard each, in two, or even in three if
# sentences were left out of these. The lengths of the next group are read once, so its shards may come and go.
OPEN_SHARDS = 3 * GROUP

# Sentences of a corpus in shards that are compared with others as a whole: novelty, trigrams, mixtures.
SAMPLED = 1_000_000


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

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.lengths.max())

    @property
    def tokens(self) -> int:
        """Tokens of all sentences."""
        return int(self.lengths.sum(dtype=np.int64))

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the tokens of some sentences, [n]."""
        found: np.ndarray = self.lengths[numbers]
        return found

    def plan(self, batch_size: int, key: Sequence[int]) -> Plan:
        """Return the global batches of an epoch; see ``training_plan``."""
        return training_plan(self.lengths, batch_size, key)

    def in_memory(self) -> Sentences:
        """Return these sentences; see ``Shards``."""
        return self

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


def read(file: Path) -> pa.Table:
    """Map the rows of an Arrow file."""
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


def digest(path: Path) -> str:
    """Return a non-cryptographic digest, because every process of every run hashes what it reads."""
    found, block = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            found.update(block[:count])
    return found.hexdigest()


@dataclass(frozen=True)
class Shard:
    """An Arrow file of sentences, as it was written.

    Attributes:
        longest: tokens of its longest sentence.
        digest: see ``digest``.
    """

    file: str
    sentences: int
    tokens: int
    longest: int
    size: int
    digest: str


class Shards(Sequence[np.ndarray]):
    """The sentences of train of a corpus that is too large to be opened whole. Each shard is opened, and compared with
    its digest, when one of its sentences is asked for.

    Args:
        folder: of the files.
        shards: in order, none empty.
        block: see ``block_plan``.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], block: int):
        self._folder, self._shards, self._block = folder, shards, block
        self._firsts: list[int] = np.cumsum([0] + [shard.sentences for shard in shards]).tolist()
        self._open: OrderedDict[int, Sentences] = OrderedDict()
        self._verified: set[int] = set()
        self._lock = Lock()  # a plan's thread reads lengths
        self.longest = max(shard.longest for shard in shards)
        self.tokens = sum(shard.tokens for shard in shards)

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return one sentence, or those of a slice; negative numbers raise IndexError.

        Raises:
            UserError: a shard is missing or damaged.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        number = bisect_right(self._firsts, index) - 1
        return self._shard(number)[index - self._firsts[number]]

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the tokens of some sentences, [n]."""
        found = np.empty(len(numbers), dtype=np.int32)
        shards = np.searchsorted(self._firsts, numbers, side="right") - 1
        for number in np.unique(shards).tolist():
            here = shards == number
            found[here] = self._shard(number).lengths[numbers[here] - self._firsts[number]]
        return found

    def plan(self, batch_size: int, key: Sequence[int]) -> Plan:
        """Return the global batches of an epoch; see ``block_plan``."""
        return block_plan(len(self), self._lengths, batch_size, key, self._block)

    def in_memory(self) -> Sentences:
        """Return ``SAMPLED`` sentences at equal distances, which the user is told, or all if they are fewer."""
        if len(self) > SAMPLED and os.environ.get("RANK", "0") == "0":
            print(
                f"train: {SAMPLED:,} of its {len(self):,} sentences, at equal distances, stand for all", file=sys.stderr
            )
        numbers = np.linspace(0, len(self) - 1, min(SAMPLED, len(self))).astype(np.int64)
        return Sentences.of([self[i] for i in numbers.tolist()])

    def _lengths(self, start: int, end: int) -> np.ndarray:
        """Return the tokens of the sentences from ``start`` to before ``end``."""
        parts = []
        for number in range(bisect_right(self._firsts, start) - 1, len(self._shards)):
            first = self._firsts[number]
            if first >= end:
                break
            parts.append(self._shard(number).lengths[max(start - first, 0) : end - first])
        return np.concatenate(parts)

    def _shard(self, number: int) -> Sentences:
        with self._lock:
            if number not in self._open:
                self._open[number] = self._opened(number)
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def _opened(self, number: int) -> Sentences:
        shard = self._shards[number]
        file = self._folder / shard.file
        try:
            if number not in self._verified and digest(file) != shard.digest:
                raise ValueError
            found = Sentences(read(file).column("ids"))
        except (OSError, ValueError):
            raise UserError(
                f"{file}: is missing or damaged; delete {self._folder.parent}, and the next training will rebuild it"
            ) from None
        self._verified.add(number)
        return found
