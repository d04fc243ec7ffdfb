"""What the page shows of a model: its sentences as points, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distvae.api import TextModel
from distvae.data.new_text import Part
from distvae.evaluation.encoding import encode
from distvae.evaluation.scores import ACTIVE_VARIANCE
from distvae.methods.kl import kl_per_dimension
from distvae.system.progress_bar import Progress

# Most values of a column of labels that get a colour each.
COLOURED = 24


@dataclass(frozen=True)
class Space:
    """A model and some sentences in its latent space.

    Attributes:
        name: of the model.
        sentences: n texts.
        columns: by name, a value per sentence: numbers, or text and None.
        mean, kl: of q(z|x), [n, m] and, in nats, [n].
    """

    name: str
    model: TextModel
    sentences: list[str]
    columns: dict[str, Sequence[str | float | None]]
    mean: Tensor
    kl: Tensor

    @cached_property
    def axes(self) -> Tensor:
        """The directions in which the means vary most, [m, 2] (PCA); with m = 1, the second is 0."""
        _, _, directions = torch.linalg.svd(self.mean - self._centre, full_matrices=False)
        found = torch.zeros(self.mean.shape[1], 2)
        found[:, : len(directions[:2])] = directions[:2].T
        return found

    @cached_property
    def _centre(self) -> Tensor:
        return self.mean.mean(dim=0)

    @cached_property
    def active(self) -> list[int]:
        """The active dimensions (Burda et al., 2016), the one whose mean varies most first."""
        variance = self.mean.var(dim=0, correction=0)
        return [int(i) for i in variance.argsort(descending=True) if variance[i] > ACTIVE_VARIANCE]

    @cached_property
    def points(self) -> Tensor:
        """Where the map shows the sentences, [n, 2]."""
        return self.project(self.mean)

    def project(self, z: Tensor) -> Tensor:
        """Return where the map shows z: [k, m] → [k, 2]."""
        return (z - self._centre) @ self.axes

    def encode(self, sentence: str) -> Tensor:
        """Return the posterior mean of a sentence, [m]."""
        return self.model.encode([sentence]).mean[0]

    def neighbours(self, z: Tensor, count: int) -> list[tuple[int, float]]:
        """Return the numbers and distances of the sentences whose means are nearest to z [m], the nearest first.

        Sentences of the same text count once.
        """
        distances = (self.mean - z).norm(dim=1)
        found: dict[str, tuple[int, float]] = {}
        for i in distances.argsort(stable=True).tolist():
            found.setdefault(self.sentences[i], (i, float(distances[i])))
            if len(found) == count:
                break
        return list(found.values())


def build(name: str, model: TextModel, parts: dict[str, Part], most: int) -> Space:
    """Encode sentences of all parts.

    Args:
        most: number of sentences; of more, as many are drawn.
    """
    rows = [(split, row) for split, part in parts.items() for row in range(len(part.sentences))]
    if len(rows) > most:
        drawn = np.random.default_rng(0).choice(len(rows), most, replace=False)
        rows = [rows[i] for i in np.sort(drawn).tolist()]
    sentences = [parts[split].shown(slice(row, row + 1), model.vocabulary)[0] for split, row in rows]
    ids = [parts[split].sentences[row].tolist() for split, row in rows]
    with Progress(f"encode by {name}", len(ids), shown=True) as progress:
        found = encode(model.model, ids, progress.advance)
    kl = kl_per_dimension(found.mean.double(), found.log_variance.double()).sum(dim=1)
    columns: dict[str, Sequence[str | float | None]] = dict(_labels(parts, rows))
    if len(parts) > 1:
        columns["split"] = [split for split, _ in rows]
    columns["KL"] = kl.tolist()
    columns["length"] = [float(len(row) - 2) for row in ids]
    return Space(name, model, sentences, columns, found.mean, kl)


def _labels(parts: dict[str, Part], rows: list[tuple[str, int]]) -> Iterator[tuple[str, list[str | None]]]:
    for name in dict.fromkeys(name for part in parts.values() for name in part.label_names):
        values = {split: part.labels[name][:] for split, part in parts.items() if part.labels is not None}
        yield name, [values[split][row] if split in values else None for split, row in rows]


def groups(values: list[str | None]) -> list[str | None]:
    """Return labels of which the most frequent are kept, and the rest is «other», so that each can have a colour."""
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    kept = set(sorted(counts, key=lambda value: (-counts[value], value))[:COLOURED])
    if len(counts) <= COLOURED:
        return values
    return [value if value is None or value in kept else "other" for value in values]
