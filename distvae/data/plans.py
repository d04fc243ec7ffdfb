"""Which sentences of a split are in which global batch.

A plan depends on the seed and epoch, not on the number of ranks. Each epoch has every sentence
in one batch, and at most one partial batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import overload

import numpy as np

# Number of batches whose sentences are sorted by length together: enough for hardly any padding.
WINDOW = 64
# Number of blocks whose sentences are shuffled together.
GROUP = 16


class Plan(Sequence[np.ndarray]):
    """Batches of sentence numbers, in groups. A group's order is made by a thread while the batches of the group before
    are in use, and kept until one of another group is asked for.

    Args:
        size: sentences per batch.
        counts: sentences of each group.
        order: takes the number of a group; returns its n sentence numbers in an order that is cut into pieces of
            ``size``, of which the last may have fewer, and the numbers of these pieces, one per batch.
    """

    def __init__(self, size: int, counts: Sequence[int], order: Callable[[int], tuple[np.ndarray, np.ndarray]]):
        self._size, self._counts, self._order = size, counts, order
        self._ends: list[int] = np.cumsum([-(-count // size) for count in counts], dtype=np.int64).tolist()
        self._group, self._numbers, self._pieces = -1, np.empty(0, np.int32), np.empty(0, np.int64)
        self._next: Future[tuple[np.ndarray, np.ndarray]] | None = None  # of the next group
        self._thread = ThreadPoolExecutor(1)  # which starts with its first task

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return one batch, or those of a slice; negative numbers raise IndexError."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        group = self._group_of(index)
        if group != self._group:
            self._open(group)
        start = int(self._pieces[index - self._first(group)]) * self._size
        return self._numbers[start : start + self._size]

    def group(self, index: int) -> range:
        """Return the numbers of the batches that are in the same group as a batch."""
        group = self._group_of(index)
        return range(self._first(group), self._ends[group])

    def sentences(self, batches: int) -> int:
        """Return the number of sentences of the first batches."""
        if batches == len(self):
            return sum(self._counts)
        group = self._group_of(batches)
        return sum(self._counts[:group]) + sum(len(self[i]) for i in range(self._first(group), batches))

    def _open(self, group: int) -> None:
        if self._next is not None and group == self._group + 1:
            self._numbers, self._pieces = self._next.result()
        else:
            self._numbers, self._pieces = self._order(group)
        self._group = group
        self._next = self._thread.submit(self._order, group + 1) if group + 1 < len(self._counts) else None

    def _group_of(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return bisect_right(self._ends, index)

    def _first(self, group: int) -> int:
        return self._ends[group - 1] if group else 0


def training_plan(lengths: np.ndarray, batch_size: int, key: Sequence[int]) -> Plan:
    """Return the global batches of an epoch.

    Sentences are shuffled, cut into windows, sorted by length within each, and cut into batches, which are shuffled.

    Args:
        lengths: tokens of each sentence, [N].
        key: non-negative integers (seed, stage, epoch) that determine the order.
    """
    return Plan(batch_size, [len(lengths)], lambda _: _shuffled(lengths, batch_size, _generator(key)))


def block_plan(
    count: int, lengths: Callable[[int, int], np.ndarray], batch_size: int, key: Sequence[int], block: int
) -> Plan:
    """Return the global batches of an epoch of a corpus that is not shuffled as a whole.

    The corpus is cut into blocks, which are shuffled and put into groups of ``GROUP``. The sentences of a group make
    batches as those of a small corpus do, one group after the other.

    Args:
        count: number of sentences, N.
        lengths: takes the first number of a range of sentences and the number after its last one; returns the tokens of
            each.
        key: see ``training_plan``.
        block: most sentences of a block; it has whole batches, so that an epoch has one partial batch at most.
    """
    block = max(1, block // batch_size) * batch_size
    starts = np.arange(0, count, block)
    _generator(key).shuffle(starts)
    groups = [
        [(start, min(start + block, count)) for start in starts[first : first + GROUP].tolist()]
        for first in range(0, len(starts), GROUP)
    ]

    def order(group: int) -> tuple[np.ndarray, np.ndarray]:
        of_group = np.concatenate([lengths(*ends) for ends in groups[group]])
        places, pieces = _shuffled(of_group, batch_size, _generator([*key, group + 1]))
        numbers = np.concatenate([np.arange(*ends, dtype=_number(count)) for ends in groups[group]])
        return numbers[places], pieces

    return Plan(batch_size, [sum(end - start for start, end in ends) for ends in groups], order)


def evaluation_plan(lengths: np.ndarray, batch_size: int) -> Plan:
    """Return batches of sentences of similar length that contain each sentence once."""
    order = np.argsort(lengths, kind="stable")
    return Plan(batch_size, [len(order)], lambda _: (order, np.arange(_pieces(order, batch_size))))


def _shuffled(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of a group and that of its pieces; see ``Plan``."""
    # The largest array of a plan: shuffled and sorted in place.
    order = np.arange(len(lengths), dtype=_number(len(lengths)))
    rng.shuffle(order)
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window[:] = window[np.argsort(lengths[window], kind="stable")]
    return order, rng.permutation(_pieces(order, batch_size))


def _generator(key: Sequence[int]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(list(key)))


def _number(count: int) -> type[np.integer]:
    """Return the type of sentence numbers: 4 bytes if these suffice."""
    return np.int32 if count < 2**31 else np.int64


def _pieces(order: np.ndarray, size: int) -> int:
    return -(-len(order) // size)
