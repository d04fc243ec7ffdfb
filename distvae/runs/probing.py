"""Probe the latents of trained models: ``probes.json``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distvae.data.new_text import NewText, Part, check_parts
from distvae.distributed.runtime import Runtime
from distvae.evaluation import probes
from distvae.evaluation.clusters import Clusters, cluster
from distvae.evaluation.encoding import all_posteriors
from distvae.evaluation.probes import Codes, Kind, Reading
from distvae.evaluation.scores import Estimate
from distvae.model.posterior import Posterior
from distvae.runs.checkpoints import Export
from distvae.runs.findings import Findings
from distvae.system.errors import UserError
from distvae.system.files import damaged, read_as, sha256
from distvae.system.progress_bar import Progress

PROBES = "probes.json"
_WHAT = "the probes of a run"


@dataclass(frozen=True)
class Encoded:
    """The sentences of a model's probes.

    Attributes:
        name: of the model, in tables.
        weights: SHA-256 of the model's file.
        train: posteriors of train, [n, m] each.
        test: those of the split to report, [k, m] each.
        labels: by column, the labels of train and of that split.
        words: the bags of words of both.
        data: fingerprint of the sentences.
    """

    name: str
    weights: str
    data: str
    train: Posterior
    test: Posterior
    labels: dict[str, tuple[list[str | None], list[str | None]]]
    words: Reading


@dataclass(frozen=True)
class Probe:
    """What can be read from the sentences in one way.

    Attributes:
        model: name; None: from a bag of words.
        kind: see ``probes.Kind``.
        accuracy: on the split, by the number of labelled sentences that probes learn from.
        clusters: None: not computed.
    """

    model: str | None
    kind: Kind
    accuracy: dict[int, Estimate]
    clusters: Clusters | None


@dataclass(frozen=True)
class Column:
    """The probes of a column of labels.

    Attributes:
        classes: number of labels in train.
        train: number of labelled sentences there.
        test: number of labelled sentences of the split.
        chance: accuracy of naming the most frequent class of train.
    """

    classes: int
    train: int
    test: int
    chance: Estimate
    probes: tuple[Probe, ...]

    def is_of(self, codes: Codes) -> bool:
        """Whether these numbers are those of a column of labels."""
        own = self.classes, self.train, self.test, self.chance
        return own == (len(codes.classes), len(codes.labelled), len(codes.tested), probes.chance(codes))


@dataclass(frozen=True)
class Probes(Findings):
    """Contents of ``probes.json``.

    Attributes:
        split: on which accuracies are.
        models: SHA-256 of the weights of each model.
        columns: by name of a column of labels.
        notes: columns that were left out, and why.
        data: fingerprint of the sentences, that of the run's results if these are its own; None: an older version.
    """

    split: str
    seed: int
    models: dict[str, str]
    columns: dict[str, Column]
    notes: tuple[str, ...]
    data: str | None = None

    @property
    def contradiction(self) -> str | None:
        """Describe a contradiction between these numbers, as in a damaged file; None if they agree."""
        for name, column in self.columns.items():
            shares = [column.chance, *(share for probe in column.probes for share in probe.accuracy.values())]
            if not all(0 <= share.mean <= 1 and (share.standard_error or 0.0) >= 0 for share in shares):
                return f"an accuracy of {name} is not between 0 and 1"
            if any(not 0 < count <= column.train for probe in column.probes for count in probe.accuracy):
                return f"{name} has {column.train} labelled sentences, and probes learn from others"
        return None


def load(run: Path) -> Probes | None:
    """Read a run's ``probes.json``. None: there is none.

    Raises:
        FormatError: a newer version wrote it.
        UserError: it is damaged.
    """
    path = run / PROBES
    if not os.path.lexists(path):
        return None
    found = read_as(Probes, path, _WHAT)
    if (why := found.contradiction) is not None:
        raise damaged(path, _WHAT, why)
    return found


def encode(name: str, found: Export, text: NewText, split: str, runtime: Runtime) -> Encoded:
    """Encode the sentences of train and of a split. Every process must call this, and gets the same.

    Raises:
        UserError: there is no such split, or no label.
    """
    parts = text.parts
    check_parts(name, parts, split, f"a probe learns from train and is tested on {split}")
    if not parts["train"].label_names or not parts[split].label_names:
        raise UserError(f"{name}: the sentences have no labels to probe for; name a column by data.label=COLUMN")
    model = found.model(runtime.device)
    sentences = [parts[part].sentences for part in ("train", split)]
    with Progress(f"encode by {name}", sum(map(len, sentences)), runtime.is_main) as progress:
        train, test = (all_posteriors(model, part, runtime, progress.advance) for part in sentences)
    columns = _columns(parts["train"]), _columns(parts[split])
    labels = {column: (columns[0][column], columns[1][column]) for column in columns[0]}
    words = probes.bag_of_words(sentences[0], sentences[1], len(found.vocabulary))
    weights = sha256(found.folder / "model.safetensors")
    return Encoded(name, weights, text.fingerprint, train, test, labels, words)


def _columns(part: Part) -> dict[str, list[str | None]]:
    return {} if part.labels is None else {name: list(part.labels[name]) for name in part.label_names}


def probe(
    models: Sequence[Encoded],
    split: str,
    counts: Sequence[int | None],
    quick: bool,
    seed: int,
    shown: bool,
    known: Probes | None = None,
) -> Probes:
    """Probe models of the same sentences for each column of labels.

    Args:
        split: which was encoded.
        counts: numbers of labelled sentences to learn from; None, and more than there are, is all of them.
        quick: leave out posterior means and clusters.
        seed: of all draws.
        shown: whether to show progress.
        known: probes of another model. If they are of the same sentences, labels and draws, their bag of words is
            taken over.

    Raises:
        UserError: scikit-learn is missing, the models have read other sentences, or no column has two classes.
    """
    from threadpoolctl import threadpool_limits

    first = models[0]
    for other in models[1:]:
        if other.labels != first.labels:
            raise UserError(f"{other.name}: has read other sentences than {first.name}; give both the same ones")
    seen: list[tuple[str | None, Reading]] = []
    for model in models:
        z, mean = probes.readings(model.train, model.test, seed)
        seen += [(model.name, z)] if quick else [(model.name, z), (model.name, mean)]
    seen.append((None, first.words))
    if known is not None and (known.data, known.split, known.seed) != (first.data, split, seed):
        known = None
    codes = {name: Codes.of(*labels) for name, labels in first.labels.items()}
    notes = [
        f"{name}: left out, because {split} has no label of it" if len(found.classes) > 1
        else f"{name}: left out, because train has {len(found.classes)} of its classes"
        for name, found in codes.items() if len(found.classes) < 2 or not len(found.tested)
    ]  # fmt: skip
    if len(notes) == len(codes):
        raise UserError(f"{first.name}: there is nothing to probe for: {'; '.join(notes)}")
    columns = {}
    # Small matrices gain nothing from threads, and sums do not depend on their number.
    with threadpool_limits(1):
        for name, found in codes.items():
            if len(found.classes) < 2 or not len(found.tested):
                continue
            sizes = sorted({min(count or len(found.labelled), len(found.labelled)) for count in counts})
            words = None if known is None or not quick else _words(known, name, found, sizes)
            read = seen if words is None else seen[:-1]
            with Progress(f"probe {first.name} for {name}", sum(sizes) * len(read), shown) as progress:
                columns[name] = _column(read, found, sizes, not quick, seed, progress.advance)
            if words is not None:
                columns[name] = replace(columns[name], probes=(*columns[name].probes, words))
    models_by_name = {model.name: model.weights for model in models}
    return Probes(split, seed, models_by_name, columns, tuple(notes), first.data)


def _words(known: Probes, name: str, codes: Codes, sizes: Sequence[int]) -> Probe | None:
    """Return the known probe of the bag of words for these sizes; None if it is not known."""
    column = known.columns.get(name)
    if column is None or not column.is_of(codes):
        return None
    found = next((probe for probe in column.probes if probe.kind == "words"), None)
    if found is None or not found.accuracy.keys() >= {*sizes}:
        return None
    return replace(found, accuracy={size: found.accuracy[size] for size in sizes}, clusters=None)


def _column(
    seen: Sequence[tuple[str | None, Reading]],
    codes: Codes,
    sizes: Sequence[int],
    clusters: bool,
    seed: int,
    on_progress: Callable[[int], None],
) -> Column:
    found = []
    for model, reading in seen:
        accuracy = {}
        for size in sizes:
            accuracy[size] = probes.probe(reading, codes, size, seed)
            on_progress(size)
        found.append(Probe(model, reading.kind, accuracy, cluster(reading, codes, seed) if clusters else None))
    return Column(len(codes.classes), len(codes.labelled), len(codes.tested), probes.chance(codes), tuple(found))
