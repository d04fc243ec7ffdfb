"""Results of a run: results.json and sentences.parquet."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow
from pyarrow import parquet

from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.liveness import Latent
from distvae.evaluation.metrics import METRICS
from distvae.evaluation.scores import Estimate, Floor, Scores, SentenceScores
from distvae.runs.attempts import last_begun
from distvae.system.errors import UserError
from distvae.system.files import check_as, damaged, inside, read_bytes, read_json, write_bytes, write_json
from distvae.system.formats import stamped

if TYPE_CHECKING:  # takes a second to import
    from datasets import Dataset

# Begins the names of columns of labels in sentences.parquet.
LABEL = "label."

# Up to this many epochs may be passed over by chance.
_MANY = 3


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended."""

    stage: Literal["pretrain", "train"]
    epochs: int
    converged: bool  # False: at its epoch limit
    best_epoch: int | None  # None: no epoch qualified as the best, so the last weights are used
    passed_over: int = 0  # later epochs that did not qualify: their validation KL was below the band

    @property
    def settled(self) -> bool:
        """Whether later epochs could have been the best: most of them were not passed over."""
        after = self.epochs - (self.best_epoch or 0)
        return self.passed_over < _MANY or 2 * self.passed_over <= after


@dataclass(frozen=True)
class Results:
    """Contents of a run's ``results.json``."""

    split: str  # which sentences were scored
    scores: Scores
    floor: Floor | None
    stages: tuple[StageEnd, ...]
    vocabulary: str  # fingerprint: numbers under different vocabularies are not comparable
    vocabulary_size: int
    data: str  # fingerprint
    world_size: int
    start: int | None = None  # number of the attempt that finished the run; None: not written by a run
    unknown: float | None = None  # share of words outside the vocabulary; None: closed vocabulary, or not recorded
    latent: Latent | None = None  # None: older version, or too few sentences to judge
    tokenizer: str | None = None  # its name, ``data.tokenizer``; None: older version


def results_to_dict(results: Results) -> dict[str, Any]:
    """Return plain values for JSON."""
    return stamped(asdict(results) | {"scores": results.scores.as_dict()})


def results_from_dict(content: Any, path: Path) -> Results:
    """Read what ``results_to_dict`` returned.

    Args:
        path: file that it was read from, for errors.

    Raises:
        FormatError: a newer version wrote it.
        UserError: it has another form, or its numbers contradict each other.
    """
    results = check_as(Results, _without_bound(content), path, _RESULTS)
    why = results.scores.contradiction
    bound_holds = results.scores.bound_holds
    if why is None and content["scores"].get("bound_holds", bound_holds) is not bound_holds:
        why = "bound_holds contradicts nll_excess"
    for end in results.stages:
        if not (1 <= (end.best_epoch or 1) <= end.epochs and 0 <= end.passed_over <= end.epochs):
            why = f"the epochs of {end.stage} contradict each other"
    if why is not None:
        raise damaged(path, _RESULTS, why)
    return results


_RESULTS = "a run's results"


def _without_bound(content: Any) -> Any:
    """Leave out ``bound_holds``, which follows from the other scores."""
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):
        return content
    return content | {"scores": {name: value for name, value in content["scores"].items() if name != "bound_holds"}}


def save_results(run: Path, results: Results, check: Callable[[], None] = lambda: None) -> None:
    """Write a run's ``results.json``. ``check`` is called before the file is renamed into place; it may raise."""
    write_json(run / "results.json", results_to_dict(results), check)


def save_sentence_scores(
    run: Path, scores: SentenceScores, check: Callable[[], None] = lambda: None, labels: Dataset | None = None
) -> None:
    """Write a run's ``sentences.parquet``, one row per scored sentence. ``check``: see ``save_results``.

    Args:
        labels: columns of labels, of the same sentences.
    """
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(sentence_table(scores, labels), sink)
    write_bytes(run / "sentences.parquet", sink.getvalue().to_pybytes(), check)


def sentence_table(scores: SentenceScores, labels: Dataset | None) -> pyarrow.Table:
    """Return a row per sentence: its scores and its labels."""
    columns: dict[str, Any] = {name: values for name, values in vars(scores).items() if values is not None}
    if labels is not None:
        columns |= {f"{LABEL}{name}": pyarrow.array(labels[name][:]) for name in labels.column_names}
    return pyarrow.table(columns)


def load_sentence_scores(run: str | Path, results: Results) -> SentenceScores:
    """Read the scores of each sentence.

    Args:
        results: results of the run.

    Raises:
        UserError: the file is missing or damaged, or its means are not these results.
    """
    path = Path(run) / "sentences.parquet"
    try:
        # Read in this thread: a thread of Arrow's pool that is alive at interpreter exit may abort the program.
        with parquet.ParquetFile(pyarrow.BufferReader(read_bytes(path)), pre_buffer=False) as file:
            found = file.read(use_threads=False)
        columns = {
            # By DLPack, because Arrow's own conversion imports pandas.
            name: np.asarray(np.from_dlpack(found[name].combine_chunks()), dtype=np.float64)
            for name in found.column_names
            if not name.startswith(LABEL)
        }
        scores = SentenceScores(**columns)
    except (OSError, pyarrow.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {error}; it is damaged: restore it from a copy") from None
    if not _are_the_means_of(results.scores, scores):
        raise UserError(
            f"{path}: its means are not the scores in {Path(run) / 'results.json'}; one of them was damaged or changed:"
            " restore it from a copy"
        )
    return scores


def _are_the_means_of(found: Scores, each: SentenceScores) -> bool:
    columns = [values for values in vars(each).values() if values is not None]
    if any(len(values) != found.sentences or not np.isfinite(values).all() for values in columns):
        return False
    expected = Scores.of(
        each,
        active_units=found.active_units,
        kl_per_dimension=found.kl_per_dimension,
        seed=found.seed,
        importance_samples=found.importance_samples,
        effective_samples=found.effective_samples,
        nll_excess=found.nll_excess,
    )
    # An older version has not computed every metric.
    computed = [metric for metric in METRICS.values() if metric.of(found) is not None]
    return (
        found.tokens == expected.tokens
        and (found.nll is None) == (expected.nll is None)
        and all(_same(metric.of(found), metric.of(expected)) for metric in computed)
    )


def _same(one: Estimate | float | None, other: Estimate | float | None) -> bool:
    """Whether two scores are equal up to rounding."""
    if not isinstance(one, Estimate) or not isinstance(other, Estimate):
        return one == other
    pairs = ((one.mean, other.mean), (one.standard_error, other.standard_error))
    return all(a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in pairs)


def load_results(run: str | Path) -> Results:
    """Read a run's results.

    Raises:
        FormatError: a newer version wrote them.
        UserError: there are none, they are damaged, or they do not match the files beside them.
    """
    path = Path(run) / "results.json"
    if not os.path.lexists(path):
        raise UserError(f"{run}: has no results.json; has the run finished?")
    results = results_from_dict(read_json(path), path)
    last = last_begun(Path(run))
    if results.start is not None and results.start < last:
        raise UserError(f"{path}: was written by attempt {results.start}, and attempt {last} has resumed the run since")
    if (path.parent / "sentences.parquet").exists():
        load_sentence_scores(run, results)
    if (path.parent / "vocabulary.json").exists():
        vocabulary = Vocabulary.load(inside(path.parent, "vocabulary.json"))
        if (vocabulary.fingerprint, len(vocabulary)) != (results.vocabulary, results.vocabulary_size):
            raise damaged(path, _RESULTS, "its vocabulary is not the one of vocabulary.json beside it")
    return results
