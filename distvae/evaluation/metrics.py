"""The metrics of a model, each declared once.

Tables, curves, the line of an epoch, sweeps and reports show what ``METRICS`` lists. A metric is a field of ``Scores``,
its computation (in ``Scores.of`` if it follows from the scores of single sentences) and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from distvae.evaluation.scores import Estimate, Scores, fixed

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Metric:
    """How a score is named and shown."""

    key: str  # field of ``Scores``, and key in files
    title: str
    meaning: str
    better: Direction | None  # None: neither, so that no sweep can optimize it
    unit: str | None = None
    name: str | None = None  # what the title is short for, where there is room
    decimals: int = 2
    width: int = 6  # of the number in the line of an epoch
    curve: str | None = None  # name of its curve over epochs; None: it is not shown by epoch
    in_sweeps: bool = True  # shown of every trial of a sweep; False: only where the sweep optimizes it
    most: Callable[[Scores], int] | None = None  # for counts, what it is a part of

    @property
    def explanation(self) -> str:
        """The meaning, with the unit."""
        return self.meaning if self.unit is None else f"{self.meaning}, in {self.unit}"

    @property
    def heading(self) -> str:
        """The title, and what it is short for."""
        return self.title if self.name is None else f"{self.title}, {self.name}"

    def of(self, scores: Scores) -> Estimate | float | None:
        """Return the score, or None if it was not computed."""
        found: Estimate | float | None = getattr(scores, self.key)
        return found

    def value(self, scores: Scores) -> float | None:
        """Return the score without its error, or None if it was not computed."""
        found = self.of(scores)
        return found.mean if isinstance(found, Estimate) else found

    def number(self, value: float) -> str:
        """Format a value."""
        return fixed(value, self.decimals)

    def short(self, scores: Scores) -> str | None:
        """Format the score without its error: ``30.44``, ``2 of 16``."""
        value = self.value(scores)
        if value is None:
            return None
        return self.number(value) + ("" if self.most is None else f" of {self.most(scores)}")

    def text(self, scores: Scores) -> str | None:
        """Format the score with its standard error: ``30.44 ± 0.14``."""
        found = self.of(scores)
        return found.text(self.decimals) if isinstance(found, Estimate) else self.short(scores)


_NATS = "nats per sentence"

_DECLARED = (
    Metric("re", "RE", "reconstruction error", "min", _NATS, curve="re/valid", in_sweeps=False),
    Metric("kl", "KL", "KL of posterior and prior", "max", _NATS, width=5, curve="kl/valid"),
    Metric("neg_elbo", "−ELBO", "RE + KL, which prefers collapse", "min", _NATS, curve="neg_elbo/valid"),
    Metric("nll", "NLL", "−log p(x)", "min", _NATS, curve="nll/valid"),
    Metric("ppl", "PPL", "perplexity per token, by the NLL", "min", in_sweeps=False),
    Metric(
        "bpc",
        "BPC",
        "bits per character, by the NLL: comparable between tokenizers",
        "min",
        name="bits per character",
        decimals=3,
        in_sweeps=False,
    ),
    Metric("elbo_ppl", "ELBO PPL", "perplexity per token, by −ELBO", "min", in_sweeps=False),
    Metric(
        "active_units",
        "AU",
        "active units: dimensions of z whose posterior mean varies over the sentences",
        "max",
        name="active units",
        decimals=0,
        width=2,
        curve="latent/active_units",
        most=lambda scores: len(scores.kl_per_dimension),
    ),
    Metric(
        "mutual_information",
        "MI",
        "mutual information of sentence and z",
        "max",
        "nats",
        name="mutual information",
        width=4,
        curve="latent/mutual_information",
    ),
)

# In the order of tables.
METRICS = {metric.key: metric for metric in _DECLARED}
