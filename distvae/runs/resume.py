"""Whether a run may go on in its folder, and from where."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from distvae.config.load import dump_config, flatten, load_config
from distvae.config.schema import Config
from distvae.data import corpus
from distvae.runs import checkpoint, starts, tracking
from distvae.runs.results import Results, load_results
from distvae.runs.starts import Start
from distvae.system.errors import UserError, printable
from distvae.system.files import inside, sweep, write_json, write_text, writing

# Files of a run's folder that say what was asked for, not what came of it.
DESCRIPTIONS = (
    "config.yaml", "environment.json", "vocabulary.json", "status.json", "lineage.json", starts.FOLDER,
)  # fmt: skip

# Its other files.
PRODUCTS = (
    "checkpoints", "tensorboard", "metrics.jsonl", "pretrained", "best", "results.json", "sentences.parquet",
    "not_finite.json",
)  # fmt: skip

# Keys that may differ when a run goes on: the first say where things lie and who does the work (the sentences are known
# by their fingerprint), the others how far it goes and what is looked at.
NO_MATTER = {
    "run", "resume", "cpu_threads", "data.path", "data.cache", "data.workers", "optimizer.accumulation_steps",
    "evaluation.batch_size", "evaluation.memory_mb", "checkpoint.every_steps", "checkpoint.every_minutes",
    "checkpoint.keep", "communication.timeout_minutes", "speed.output_layer", "speed.embedding_gradients",
    "speed.keep_memory", "speed.cuda_graphs",
}  # fmt: skip
MAY_CHANGE = {
    "pretrain.max_epochs", "train.max_epochs", "optimizer.on_nan", "evaluation.importance_samples",
    "evaluation.validation_samples", "evaluation.samples",
}  # fmt: skip


@dataclass(frozen=True)
class Opening:
    """How a run begins."""

    start: Start | None  # None: it has finished, and these are its results
    checkpoint: Path | None = None  # to go on from
    results: Results | None = None


def holds_run(run: Path) -> bool:
    """Whether there is anything in ``run`` that a new run would spoil: more than a record of failed attempts.

    Raises:
        UserError: it cannot be a run's folder, because it holds files that a run would overwrite and none wrote.
    """
    try:
        names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    except OSError as error:
        raise UserError(f"run={run}: cannot be a run's folder: {error.strerror}") from None
    if starts.FOLDER in names:
        return not names.isdisjoint(PRODUCTS)
    # Before its first attempt, a run has a status where its config was refused, and a trial of a sweep its lineage.
    theirs = names.intersection((*DESCRIPTIONS, *PRODUCTS)) - {"lineage.json"}
    if "status.json" in theirs:
        with contextlib.suppress(UserError):
            tracking.read_status(run)
            theirs.remove("status.json")
    if theirs:
        raise UserError(
            f"run={run}: holds {', '.join(sorted(theirs))}, which no run wrote there and a run would overwrite; name"
            " another run=FOLDER"
        )
    return False


def open_run(
    config: Config, run: Path, processes: str, may_change: frozenset[str] = frozenset(), overtake: bool = False
) -> Opening:
    """Make the run's folder, or see that the run can go on in it, and become the one that writes it.

    Args:
        may_change: more keys that may differ when the run goes on.
        overtake: a start that still lives is to end, and does not bar this one.

    Raises:
        UserError: it holds a run that this config does not continue, or that another start is training.
    """
    found = None
    if holds_run(run):
        if config.resume == "never":
            raise UserError(
                f"{run}: a run is there already; go on with it by resume=auto, or name another folder by run=FOLDER"
            )
        results = finished(config, run, may_change)
        if results is not None:
            with writing(run):
                ended = tracking.end_status(run, results.start, results.latent)
            trained = load_config(run / "config.yaml", stored=True).data
            data = f"data.path={trained.path} ({results.data})"
            print(printable(f"{run}: finished {ended.time}, trained on {data}; its results:"))
            return Opening(None, results=results)
        if config.resume == "auto":
            found = checkpoint.newest_checkpoint(run)
    if config.resume not in ("never", "auto"):
        found = _named(config, run, may_change)
    if found is not None:
        _check_state(config, found)
    try:
        run.mkdir(parents=True, exist_ok=True)
        start = starts.claim(run, overtake)
    except OSError as error:
        raise UserError(f"run={run}: cannot be a run's folder: {error.strerror}") from None
    with writing(run):
        for folder in (run, run / "checkpoints"):
            sweep(folder)
        # A run that goes on has no results until it ends again.
        for name in ("results.json", "sentences.parquet"):
            (run / name).unlink(missing_ok=True)
        write_text(run / "config.yaml", dump_config(config))
        write_json(run / "environment.json", tracking.environment(processes))
        tracking.write_status(run, "running", start=start.number)
    return Opening(start, found)


def finished(config: Config, run: Path, may_change: frozenset[str] = frozenset()) -> Results | None:
    """The results of the run in this folder, if it has finished and this config asks for nothing more.

    Raises:
        UserError: it is a run that this config does not continue, or was trained on other sentences.
    """
    if not holds_run(run):
        return None
    for path in run.iterdir():
        inside(run, path.name)
    changed = _changed(load_config(run / "config.yaml", stored=True), config, run, may_change)
    if config.resume == "auto" and not changed and os.path.lexists(run / "results.json"):
        try:
            results = load_results(run)
        except UserError as error:  # damaged, or of an attempt that another has overtaken
            print(printable(f"distvae: WARNING {error}; the run's weights are scored again"), file=sys.stderr)
            return None
        try:
            _check_sentences(config, results.data, run)
        except UserError as error:
            raise UserError(f"{error}; this run has finished: distvae compare {run} prints its results") from None
        return results
    return None


def _named(config: Config, run: Path, may_change: frozenset[str]) -> Path:
    """The checkpoint that `resume` names.

    Raises:
        UserError: it is none that this config can go on from in this folder.
    """
    folder = Path(config.resume).resolve()  # which may have been named by way of `latest`
    if not folder.is_dir():
        raise UserError(f"resume={config.resume}: is neither auto nor never, nor the folder of a checkpoint")
    checkpoint.verify_checkpoint(folder)
    _changed(load_config(folder / "config.yaml", whole=True), config, folder, may_change)
    if holds_run(run) and not folder.is_relative_to(run.resolve()):
        raise UserError(f"resume={config.resume}: is of another run than the one in {run}; name a new run=FOLDER")
    return folder


def _changed(there: Config, here: Config, where: Path, may_change: frozenset[str]) -> set[str]:
    """The keys in which a config that goes on with a run asks for more, or less, of the same.

    Raises:
        UserError: it asks for something else.
    """
    started, unread = dict(flatten(there)), there.unread.keys() & here.unread.keys()
    # An option that only one of them has goes with the component that declares it, which differs too.
    changed = {
        key: value
        for key, value in flatten(here)
        if key in started and started[key] != value and key not in NO_MATTER | unread
    }
    differing = [
        f"{key} ({started[key]} there, {value} here)"
        for key, value in changed.items()
        if key not in MAY_CHANGE | may_change
    ]
    if differing:
        raise UserError(f"{where}: cannot go on under another config: {', '.join(differing)}; name another run=FOLDER")
    return set(changed)


def _check_state(config: Config, folder: Path) -> None:
    """See that a checkpoint belongs to what it would go on with, before anything is written.

    Raises:
        UserError: the sentences, or how they become ids, have changed since; the pretraining that would have another
            length has ended.
    """
    state, there = checkpoint.load_state(folder), load_config(folder / "config.yaml", whole=True)
    if state.stage != "pretrain" and there.pretrain != config.pretrain:
        raise UserError(
            f"{folder}: its pretraining has ended, at pretrain.max_epochs={there.pretrain.max_epochs}, not"
            f" {config.pretrain.max_epochs}; name another run=FOLDER"
        )
    _check_sentences(config, state.data, folder)


def _check_sentences(config: Config, trained_on: str, where: Path) -> None:
    """Compare the sentences that a config names with those of a run.

    Args:
        trained_on: fingerprint of the run's.

    Raises:
        UserError: they differ, or are not there.
    """
    found = corpus.fingerprint(config.data)
    if found != trained_on:
        raise UserError(
            f"{where}: was trained on other sentences ({trained_on}) than {config.data.path} holds now ({found}), or on"
            " what another version of distvae or NLTK made of them; name another run=FOLDER"
        )
