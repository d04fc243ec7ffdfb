"""Group runs into methods, and score each method over its seeds, with errors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from distvae.config.keys import flatten, keys_with
from distvae.config.load import load_config
from distvae.config.schema import Config
from distvae.evaluation.scores import Estimate, SentenceScores, fixed, mean_estimate, perplexity
from distvae.runs.environment import Environment, read_environment
from distvae.runs.records import EpochRecord, read_metrics
from distvae.runs.results import Results, load_results, load_sentence_scores
from distvae.system.errors import UserError
from distvae.system.files import damaged, inside
from distvae.system.roles import Role

# The keys in which runs of one method may differ.
_BETWEEN_SEEDS = keys_with(Config, Role.PLACE, Role.SOURCE, Role.PER_RUN)

# A difference counts from this many standard errors.
CERTAIN = 2.0

# Scores of single sentences, in nats. ``marginal_kl``: KL − MI, whose mean estimates KL(q(z) ‖ p(z)). ``gap``: −ELBO −
# NLL, the KL of the posterior and the model's own.
PerSentence = Literal["re", "kl", "neg_elbo", "nll", "mutual_information", "marginal_kl", "gap"]

# The settings of a method: dotted keys and their values as text.
Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    """The content of a run folder. A finished run is a ``FinishedRun``."""

    folder: Path
    config: Config
    epochs: list[EpochRecord]  # its records, in order
    environment: Environment

    @property
    def hours(self) -> float:
        """Hours of training and validation, without the test."""
        return self.hours_of("pretrain") + self.hours_of("train")

    def hours_of(self, stage: Literal["pretrain", "train"]) -> float:
        """Return the hours of a stage."""
        return float(sum(row.train.seconds + row.valid_seconds for row in self.epochs if row.stage == stage)) / 3600

    @property
    def vae(self) -> list[EpochRecord]:
        """The records of the VAE's epochs."""
        return [row for row in self.epochs if row.stage == "train"]

    @property
    def annealed(self) -> list[EpochRecord]:
        """The records of the VAE's epochs after annealing."""
        return [row for row in self.vae if row.epoch > self.config.kl.policy.warm_up]


@dataclass(frozen=True)
class FinishedRun(Run):
    """A run that has results."""

    results: Results
    sentences: SentenceScores

    def of_sentences(self, score: PerSentence) -> np.ndarray | None:
        """Return a score of each test sentence, in nats: [N]. None if the run does not have it."""
        own = self.sentences
        scores: dict[str, np.ndarray | None] = {
            **vars(own),
            "neg_elbo": own.re + own.kl,
            "marginal_kl": own.kl - own.mutual_information,
            "gap": None if own.nll is None else own.re + own.kl - own.nll,
        }
        return scores[score]


def read_run(folder: str | Path) -> Run:
    """Read a run folder. The run may still be training.

    Raises:
        UserError: it is not a run folder, or it is damaged.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / "config.yaml"):
        raise UserError(f"{folder}: is not a run folder: it has no config.yaml")
    config = load_config(inside(folder, "config.yaml"), whole=True)  # first, because it has the folder's format
    results = load_results(folder) if os.path.lexists(folder / "results.json") else None
    epochs = read_metrics(folder)
    if results is not None:
        _check_stages(folder, results, epochs)
    environment = read_environment(folder)
    if results is None:
        return Run(folder, config, epochs, environment)
    return FinishedRun(folder, config, epochs, environment, results, load_sentence_scores(folder, results))


def _check_stages(folder: Path, results: Results, epochs: list[EpochRecord]) -> None:
    """Check that the results of a run are those of the epochs that it has recorded.

    Raises:
        UserError: they are not.
    """
    recorded = {row.stage: row.epoch for row in epochs}  # lacks stages if the run continues another
    ended = {end.stage: end.epochs for end in results.stages}
    if not ended or any(ended.get(stage) != last for stage, last in recorded.items()):
        raise damaged(
            folder / "results.json",
            f"the results of the epochs in {folder / 'metrics.jsonl'}",
            f"its stages have {ended} epochs, and the records have {recorded}",
        )


def certain(found: Estimate) -> bool:
    """Return whether a difference counts, however it points."""
    return abs(found.mean) > CERTAIN * (found.standard_error or 0.0)


@dataclass(frozen=True)
class Score:
    """A score of a method."""

    mean: float  # over sentences and seeds
    error: float | None  # standard error over sentences, of the mean over seeds
    spread: float | None  # standard deviation over seeds; None: there is one

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2f}"
        spread = "" if self.spread is None else f" ({self.spread:.2f})"
        return f"{fixed(self.mean)}{error}{spread}"


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seed."""

    kind: str  # as the paper names it
    name: str  # the kind, and the settings that distinguish it from other methods of the kind
    runs: tuple[Run, ...]

    @property
    def config(self) -> Config:
        """The config of its first run. The others have another seed and other places."""
        return self.runs[0].config

    @cached_property
    def finished(self) -> tuple[FinishedRun, ...]:
        return tuple(run for run in self.runs if isinstance(run, FinishedRun))

    def of_sentences(self, name: PerSentence) -> list[np.ndarray]:
        """Return a score of each test sentence, in nats, for each finished run that has it: [N] each."""
        values = [run.of_sentences(name) for run in self.finished]
        return [value for value in values if value is not None]

    def score(self, name: PerSentence) -> Score | None:
        """Return a score in nats per sentence. None if no run has it."""
        values = self.of_sentences(name)
        if not values:
            return None
        found = mean_estimate(np.mean(values, axis=0))
        return Score(found.mean, found.standard_error, _spread([value.mean() for value in values]))

    def perplexity(self, name: Literal["nll", "neg_elbo"]) -> Score | None:
        """Return the geometric mean over seeds of the perplexity. None if no run has it."""
        values = self.of_sentences(name)
        if not values:
            return None
        tokens = self.finished[0].sentences.tokens
        found = perplexity(np.mean(values, axis=0), tokens)
        return Score(found.mean, found.standard_error, _spread([perplexity(v, tokens).mean for v in values]))

    def over_seeds(self, values: Sequence[float]) -> Score:
        """Return the score of which each run has one value."""
        return Score(float(np.mean(values)), None, _spread(values))


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def gather(folders: Sequence[str | Path]) -> list[Method]:
    """Return the methods of runs, in the order of their first runs.

    Raises:
        UserError: a folder is not a run folder, or the runs have different test sentences or vocabularies.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    groups: dict[Settings, list[Run]] = {}
    for run in runs:
        groups.setdefault(_settings(run), []).append(run)
    scored = [run for run in runs if isinstance(run, FinishedRun)]
    for run in scored:
        found, first = run.results, scored[0].results
        if (found.data, found.vocabulary, found.split) != (first.data, first.vocabulary, first.split):
            raise UserError(
                f"{run.folder} was scored on other sentences or words than {scored[0].folder}: they cannot be compared"
            )
    for group in groups.values():
        seeds = [run.config.seed for run in group]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"{group[0].folder} and {group[1].folder}: are the same run twice, with the same seed")
    kinds = [method_of(group[0].config) for group in groups.values()]
    return [
        Method(kind, kind if kinds.count(kind) == 1 else _named(kind, group[0], groups), tuple(group))
        for kind, group in zip(kinds, groups.values(), strict=True)
    ]


def method_of(config: Config) -> str:
    """Return the name of a config's method, as the paper would form it."""
    if config.language_model:
        return "LSTM-LM"
    if config.autoencoder:
        return "AE"
    parts = ["PT"] if config.pretrained is not None or config.pretrain.max_epochs else []
    policy, pooling, weight = config.kl.policy, config.model.pooling, config.kl.flat().get("weight", 1.0)
    parts += [] if pooling == "last" else [f"{pooling} pooling"]
    parts += [policy.warm_up_label] if policy.warm_up else []
    posterior = config.model.posterior
    parts += [posterior.label, config.kl.free_bits.label, policy.label, "" if weight == 1 else f"β = {weight:g}"]
    parts += [f"{config.model.word_dropout:.0%} word dropout"] if config.model.word_dropout else []
    parts += [config.inference.training.label]
    return " + ".join(filter(None, parts)) or "VAE"


def _settings(run: Run) -> Settings:
    own = {key: value for key, value in flatten(run.config) if key not in _BETWEEN_SEEDS}
    # The limit of the run's own pretraining does not matter if it takes over another's.
    if run.config.pretrained is not None:
        own["pretrain.max_epochs"] = "taken over"
    return tuple(sorted((key, str(value)) for key, value in own.items()))


def _named(kind: str, run: Run, groups: dict[Settings, list[Run]]) -> str:
    """Return the kind, and the values of the keys in which the methods of the kind differ."""
    alike = [dict(key) for key, group in groups.items() if method_of(group[0].config) == kind]
    own = dict(_settings(run))
    # An option that only some of them have goes with a choice, which differs too.
    differing = [key for key in own if len({other[key] for other in alike if key in other}) > 1]
    return f"{kind} ({', '.join(f'{key}={own[key]}' for key in differing)})"


def difference(one: Method, other: Method, score: PerSentence, signs: tuple[int, int] = (1, 1)) -> Estimate:
    """Return the mean of ``one`` − ``other`` over the same sentences, in nats.

    The error is that over sentences, plus that over seeds where a method has several.

    Args:
        signs: factors of both.
    """
    ours, theirs = (
        [sign * value for value in method.of_sentences(score)] for sign, method in zip(signs, (one, other), strict=True)
    )
    paired = mean_estimate(np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    variance = (paired.standard_error or 0.0) ** 2
    for values in (ours, theirs):
        variance += (_spread([value.mean() for value in values]) or 0.0) ** 2 / len(values)
    return Estimate(paired.mean, float(np.sqrt(variance)))


def steadiness(run: Run) -> float:
    """Return the standard deviation of the validation KL over the epochs after annealing, in nats; NaN if below two."""
    values = [row.valid.kl.mean for row in run.annealed]
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def distance(run: Run) -> float:
    """Return the root mean square distance of that KL from λ, in nats; NaN without epochs or λ."""
    rate = run.config.kl.rate
    values = [] if rate is None else [row.valid.kl.mean - rate for row in run.annealed]
    return float(np.sqrt(np.mean(np.square(values)))) if values else float("nan")
