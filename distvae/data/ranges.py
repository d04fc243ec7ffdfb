"""Rows of train by range, and steps that several processes take for each range.

Every step of every range leaves a file with its outcome, so that it is taken once even if the preparation is killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from distvae.config.schema import DataConfig
from distvae.data.preparation import sentences_of
from distvae.data.readers.columns import TEXT_COLUMN
from distvae.data.workers import announce, map_numbers
from distvae.system.cores import usable_cores
from distvae.system.errors import UserError
from distvae.system.files import flush, write_text

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset

# Sentences that a process compares with each other at once, by their hashes.
BUCKET = 1 << 22

# Most bytes of text of a range, which a process holds in memory.
RANGE_BYTES = 1 << 28

# numpy draws from fewer rows than this (``Generator.hypergeometric``).
MOST_SAMPLED = 10**9


@dataclass(frozen=True)
class Rows:
    """Rows of train, by range.

    Attributes:
        source: all rows, a column ``text``.
        ends: the row after the last one of each range.
        stage: name of the stage that chose them.
        counts: rows of each range.
    """

    source: Dataset
    ends: tuple[int, ...]
    data: DataConfig
    work: Path
    stage: str = ""
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, source: Dataset, data: DataConfig, work: Path) -> Rows:
        """Cut all rows into ranges of at most ``data.shard_size`` rows and ``RANGE_BYTES`` of text."""
        ends: list[int] = []
        first = rows = size = 0  # of the chunk; of the range that is not yet full
        for chunk in source.data.column(TEXT_COLUMN).chunks:
            sizes = np.cumsum(pc.fill_null(pc.binary_length(chunk), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
            done = 0
            while done < len(chunk):
                before = int(sizes[done - 1]) if done else 0
                fit = int(np.searchsorted(sizes, before + RANGE_BYTES - size, side="right")) - done
                taken = min(len(chunk) - done, data.shard_size - rows, max(fit, 0 if rows else 1))
                rows, done = rows + taken, done + taken
                size += int(sizes[done - 1]) - before if taken else 0
                if not taken or rows == data.shard_size:
                    ends.append(first + done)
                    rows = size = 0
            first += len(chunk)
        if rows:
            ends.append(first)
        return cls(source, tuple(ends), data, work)

    @property
    def total(self) -> int:
        """Number of rows."""
        return sum(self.counts)

    @property
    def buckets(self) -> int:
        """Number of parts in which sentences are compared."""
        return -(-self.ends[-1] // BUCKET)

    def start(self, number: int) -> int:
        """Return the first row of a range."""
        return self.ends[number - 1] if number else 0

    def kept(self, number: int) -> np.ndarray:
        """Return the rows of a range, counted from its start: int32 [n]."""
        rows: np.ndarray = np.load(self.work / self.stage / f"{number}.npy")
        return rows

    def texts(self, number: int) -> Dataset:
        """Return the sentences of a range."""
        return self.source.select(self.start(number) + self.kept(number))

    def sentences(self) -> Iterator[str]:
        """Yield all sentences."""
        for number in range(len(self.ends)):
            yield from sentences_of(self.texts(number))

    def draw(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        """Draw the rows of splits, sorted; no row is in two of them."""
        places = np.random.default_rng(self.data.seed).choice(self.total, sum(sizes.values()), replace=False)
        ends = np.cumsum(self.counts)
        found = {}
        for split, drawn in zip(sizes, np.split(places, np.cumsum([*sizes.values()])[:-1]), strict=True):
            drawn = np.sort(drawn)
            ranges = np.searchsorted(ends, drawn, side="right")
            found[split] = np.concatenate(
                [
                    self.start(n) + self.kept(n)[drawn[ranges == n] - (ends[n] - self.counts[n])].astype(np.int64)
                    for n in np.unique(ranges).tolist()
                ]
            )
        return found

    def shares(self, size: int) -> tuple[int, ...]:
        """Draw how many of ``size`` rows are of each range, if every choice of rows is equally likely.

        Raises:
            UserError: there are more rows than numpy can draw from.
        """
        if self.total >= MOST_SAMPLED:
            raise UserError(
                f"data.train_size: cannot sample from {self.total:,} sentences, only from {MOST_SAMPLED:,}; pass fewer"
                " files instead"
            )
        rng, left = np.random.default_rng((self.data.seed, 0)), self.total
        sizes: list[int] = []
        for count in self.counts:
            left -= count
            sizes.append(int(rng.hypergeometric(count, left, size - sum(sizes))))
        return tuple(sizes)

    def each(self, name: str, step: Step, title: str, count: int | None = None) -> list[dict[str, Any]]:
        """Take a step for each range that has no outcome yet, in several processes. Return all outcomes.

        Args:
            count: number of steps; None: of ranges.
        """
        (self.work / name).mkdir(exist_ok=True)
        outcomes = [self.work / name / f"{number}.json" for number in range(count or len(self.ends))]
        left = [number for number, outcome in enumerate(outcomes) if not outcome.exists()]
        if left:
            processes = min(self.data.workers or usable_cores(), len(left))
            announce(title, len(left), processes)
            map_numbers(left, partial(_take, rows=self, folder=self.work / name, step=step), processes, title)
        return [json.loads(outcome.read_bytes()) for outcome in outcomes]

    def narrow(self, stage: str, step: Choice, title: str) -> tuple[Rows, list[dict[str, Any]]]:
        """Choose from the rows of each range. Return the chosen ones, and the outcomes."""
        outcomes = self.each(stage, partial(_choose_rows, step=step, folder=self.work / stage), title)
        return replace(self, stage=stage, counts=tuple(row["rows"] for row in outcomes)), outcomes


# Takes the rows of a stage and the number of a range.
Step = Callable[..., dict[str, Any]]
Choice = Callable[..., tuple[np.ndarray, dict[str, int]]]


def _take(number: int, rows: Rows, folder: Path, step: Step) -> None:
    """Take a step, and write its outcome last."""
    dump_json(folder / f"{number}.json", step(rows, number))


def _choose_rows(rows: Rows, number: int, step: Choice, folder: Path) -> dict[str, int]:
    found, counts = step(rows, number)
    save_array(folder / f"{number}.npy", found.astype(np.int32))
    return {"rows": len(found)} | counts


def dump_json(path: Path, content: Any) -> None:
    """Write JSON of any size. ``files.write_json`` lays it out for people, character by character."""
    write_text(path, json.dumps(content, ensure_ascii=False))


def save_array(path: Path, rows: np.ndarray) -> None:
    """Write a contiguous array of one dimension. ``np.save`` would not say why it cannot."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        file.write(rows.data)
    flush(path)
