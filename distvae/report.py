"""Results of runs, and the table that sets them side by side."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
from pyarrow import parquet
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distvae.errors import UserError, printable
from distvae.evaluation import Estimate, Floor, Scores, SentenceScores, mean_estimate, perplexity
from distvae.files import check_as, damaged, inside, read_bytes, read_json, write_bytes, write_json
from distvae.liveness import Latent
from distvae.starts import last_begun
from distvae.vocabulary import MANY_UNKNOWN, Vocabulary

# So many epochs may be passed over by chance.
_MANY = 3


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended."""

    stage: Literal["pretrain", "train"]
    epochs: int
    converged: bool  # False: at its epoch limit
    best_epoch: int | None  # None: no epoch could be taken as the best, and its last weights stand
    passed_over: int = 0  # later epochs that could not: their validation KL was under the band

    @property
    def settled(self) -> bool:
        """Whether the best weights were free to come late: not most of the epochs after them were passed over."""
        after = self.epochs - (self.best_epoch or 0)
        return self.passed_over < _MANY or 2 * self.passed_over <= after


@dataclass(frozen=True)
class Results:
    """What a run's ``results.json`` holds."""

    split: str  # the sentences that were scored
    scores: Scores
    floor: Floor | None
    stages: tuple[StageEnd, ...]
    vocabulary: str  # fingerprint: numbers under different vocabularies are not comparable
    vocabulary_size: int
    data: str  # fingerprint
    world_size: int
    start: int | None = None  # number of the start of the run that ended it; None: not a run's own
    unknown: float | None = None  # share of the words that are not in the vocabulary; None: of a closed one, or unsaid
    latent: Latent | None = None  # None: of an older version, or too few sentences to judge it by


def as_dict(results: Results) -> dict[str, Any]:
    """Plain values for JSON."""
    return asdict(results) | {"scores": results.scores.as_dict()}


def from_dict(content: Any, path: Path) -> Results:
    """What ``as_dict`` gave.

    Args:
        path: where it stood.

    Raises:
        UserError: it is not in this form, or its numbers contradict each other.
    """
    results = check_as(Results, _without_bound(content), path, _RESULTS)
    why = results.scores.contradiction
    if why is None and as_dict(results)["scores"]["bound_holds"] != content["scores"].get("bound_holds"):
        why = "bound_holds does not go with nll_excess"
    for end in results.stages:
        if not (1 <= (end.best_epoch or 1) <= end.epochs and 0 <= end.passed_over <= end.epochs):
            why = f"the epochs of {end.stage} contradict each other"
    if why is not None:
        raise damaged(path, _RESULTS, why)
    return results


_RESULTS = "a run's results"


def _without_bound(content: Any) -> Any:
    """``bound_holds`` follows from the others."""
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):
        return content
    return content | {"scores": {name: value for name, value in content["scores"].items() if name != "bound_holds"}}


def save_results(run: Path, results: Results, check: Callable[[], None] = lambda: None) -> None:
    """Write a run's ``results.json``. ``check`` is called before it is put in its place; may raise."""
    write_json(run / "results.json", as_dict(results), check)


def save_sentence_scores(run: Path, scores: SentenceScores, check: Callable[[], None] = lambda: None) -> None:
    """Write a run's ``sentences.parquet``, a row for each sentence that its results are of. ``check``: as there."""
    columns = {name: values for name, values in vars(scores).items() if values is not None}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    write_bytes(run / "sentences.parquet", sink.getvalue().to_pybytes(), check)


def load_sentence_scores(run: str | Path, results: Results) -> SentenceScores:
    """Read what each sentence scored.

    Args:
        results: of the run.

    Raises:
        UserError: it is missing, damaged, or not what these results are the means of.
    """
    path = Path(run) / "sentences.parquet"
    try:
        # In this thread: one of Arrow's pool that still lives at the interpreter's exit may abort the program.
        with parquet.ParquetFile(pyarrow.BufferReader(read_bytes(path)), pre_buffer=False) as file:
            found = file.read(use_threads=False)
        columns = {name: np.asarray(found[name].to_numpy(), dtype=np.float64) for name in found.column_names}
        scores = SentenceScores(**{"nll": None} | columns)
    except (OSError, pyarrow.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {error}; it is damaged: restore it from a copy") from None
    if not _are_the_means_of(results.scores, scores):
        raise UserError(
            f"{path}: is not what {Path(run) / 'results.json'} gives the means of; one of them was damaged or changed:"
            " restore it from a copy"
        )
    return scores


def _are_the_means_of(found: Scores, each: SentenceScores) -> bool:
    columns = [values for values in vars(each).values() if values is not None]
    if any(len(values) != found.sentences or not np.isfinite(values).all() for values in columns):
        return False
    neg_elbo = each.re + each.kl
    expected = {
        "re": mean_estimate(each.re),
        "kl": mean_estimate(each.kl),
        "neg_elbo": mean_estimate(neg_elbo),
        "elbo_ppl": perplexity(neg_elbo, each.tokens),
        "mutual_information": mean_estimate(each.mutual_information),
        "nll": None if each.nll is None else mean_estimate(each.nll),
        "ppl": None if each.nll is None else perplexity(each.nll, each.tokens),
    }
    return each.tokens.sum() == found.tokens and all(
        _same(getattr(found, name), estimate) for name, estimate in expected.items()
    )


def _same(one: Estimate | None, other: Estimate | None) -> bool:
    if one is None or other is None:
        return one is other
    pairs = ((one.mean, other.mean), (one.standard_error, other.standard_error))
    return all(a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in pairs)


def load_results(run: str | Path) -> Results:
    """Read a run's results.

    Raises:
        UserError: it has none, they are not in this form, or do not go with what lies beside them.
    """
    path = Path(run) / "results.json"
    if not os.path.lexists(path):
        raise UserError(f"{run}: has no results.json; has the run finished?")
    results = from_dict(read_json(path), path)
    last = last_begun(Path(run))
    if results.start is not None and results.start < last:
        raise UserError(f"{path}: was written by start {results.start}; start {last} has gone on with the run")
    if (path.parent / "sentences.parquet").exists():
        load_sentence_scores(run, results)
    if (path.parent / "vocabulary.json").exists():
        vocabulary = Vocabulary.load(inside(path.parent, "vocabulary.json"))
        if (vocabulary.fingerprint, len(vocabulary)) != (results.vocabulary, results.vocabulary_size):
            raise damaged(path, _RESULTS, "its vocabulary is not the one of vocabulary.json beside it")
    return results


def table(results: dict[str, Results]) -> Table:
    """Scores as rows, runs as columns."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    splits = "/".join(dict.fromkeys(r.split for r in results.values()))
    shown.add_column(cell(f"{splits} sentences, in nats"))
    for name in results:
        shown.add_column(cell(name), justify="right")

    def row(title: str, value) -> None:
        cells = [value(r) for r in results.values()]
        if any(cell is not None for cell in cells):
            shown.add_row(title, *("–" if cell is None else str(cell) for cell in cells))

    row("RE", lambda r: r.scores.re)
    row("KL", lambda r: r.scores.kl)
    row("−ELBO", lambda r: r.scores.neg_elbo)
    row("NLL", lambda r: r.scores.nll)
    row("floor under NLL, −log p*(x)", lambda r: r.floor and r.floor.nll)
    row("PPL", lambda r: r.scores.ppl)
    row("unknown words", lambda r: None if r.unknown is None else f"{r.unknown:.2%}")
    row("ELBO PPL", lambda r: r.scores.elbo_ppl)
    row("floor under PPL", lambda r: r.floor and r.floor.ppl)
    row("AU, active units", lambda r: f"{r.scores.active_units} of {len(r.scores.kl_per_dimension)}")
    row("MI, mutual information", lambda r: r.scores.mutual_information)
    row("latent", lambda r: r.latent and r.latent.state)
    return shown


def remarks(results: dict[str, Results]) -> list[str]:
    """What a reader of the table has to know beside it."""
    first = next(iter(results.values()))
    lines = [
        f"{name}: {r.scores.sentences:,} sentences, {r.scores.tokens:,} tokens; {_importance_sampling(r.scores)}draws"
        f" by seed {r.scores.seed}; MI is at most ln {r.scores.sentences:,}; vocabulary {r.vocabulary} of"
        f" {r.vocabulary_size:,}"
        for name, r in results.items()
    ]
    if len({line.partition(": ")[2] for line in lines}) == 1:
        lines = [lines[0].partition(": ")[2]]
    for name, r in results.items():
        if r.unknown is not None and r.unknown > MANY_UNKNOWN:
            lines.append(
                f"WARNING {name}: {r.unknown:.2%} of the words are unknown, and are predicted as a class: the PPL is"
                " not that of the text; a lower data.min_count, more text or another tokenisation leaves fewer"
            )
        if r.latent is not None and r.latent.state != "alive":
            lines.append(f"WARNING {name}: the latent is {r.latent.state}: {r.latent.advice}")
        for end in r.stages:
            if end.best_epoch is None:
                lines.append(
                    f"WARNING {name}: no epoch of {end.stage} could be taken as the best (annealing had not ended, or"
                    f" the KL never came into its band): its last weights, of epoch {end.epochs}, were scored; a higher"
                    f" {end.stage}.max_epochs, fewer kl.anneal_epochs or kl.every_steps=40 give the KL time to reach it"
                )
            elif not end.settled:
                lines.append(
                    f"WARNING {name}: {end.stage} keeps the weights of epoch {end.best_epoch} of {end.epochs}, for in"
                    f" {end.passed_over} later ones the validation's KL was under the band; if γ swings, a smaller"
                    " kl.multiplier or a larger kl.threshold lets it settle"
                )
            elif not end.converged:
                lines.append(f"{name}: {end.stage} ended at its limit of {end.epochs} epochs, not converged")
        if not r.scores.bound_holds:
            lines.append(
                f"WARNING {name}: NLL stands above −ELBO by {r.scores.nll_excess}, which no right estimate does:"
                " more importance samples are needed, or something is wrong"
            )
    if any(r.vocabulary != first.vocabulary or r.data != first.data for r in results.values()):
        lines.append("WARNING these runs have different data or vocabularies: their numbers are not comparable")
    return lines


def _importance_sampling(scores: Scores) -> str:
    if scores.importance_samples == 0:
        return ""
    return (
        f"NLL from K = {scores.importance_samples} importance samples, {scores.effective_samples:.0f} of them"
        " effective; "
    )


def show(results: dict[str, Results]) -> None:
    """Print the table and its remarks."""
    print()
    show_parts([table(results), *remarks(results)])


def cell(text: object) -> Text:
    """Text of a table for a terminal, where nothing in it is markup or a terminal code."""
    return Text(printable(text))


def show_parts(parts: Iterable[Table | str]) -> None:
    """Print tables, whose texts are each a ``cell``, and lines."""
    # Where no terminal sets a width, nothing is to be broken.
    width = None if sys.stdout.isatty() else 1000
    console = Console(file=sys.stdout, highlight=False, width=width)
    for part in parts:
        console.print(printable(part) if isinstance(part, str) else part, markup=False)
