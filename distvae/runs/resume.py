"""Open a run folder: start a new run, resume from a checkpoint, or return the results of a finished run."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from distvae.config.keys import flatten, keys_with
from distvae.config.load import dump_config, load_config
from distvae.config.schema import Config, DataConfig
from distvae.data import corpus, sources
from distvae.runs import attempts, checkpoints
from distvae.runs.attempts import Attempt
from distvae.runs.environment import environment
from distvae.runs.folder import holds_run
from distvae.runs.results import Results, load_results
from distvae.runs.status import end_status, write_status
from distvae.system.errors import UserError, printable
from distvae.system.files import inside, sweep, write_json, write_text, writing
from distvae.system.formats import FormatError
from distvae.system.roles import Role

# Keys that may differ when a run resumes. Sentences are compared by their fingerprint. If a key of the second set
# differs, a finished run continues.
_IGNORED = keys_with(Config, Role.PLACE, Role.SOURCE)
_MAY_CHANGE = keys_with(Config, Role.EXTENT)


@dataclass(frozen=True)
class Opening:
    """How a run begins."""

    attempt: Attempt | None  # None: the run has finished, and `results` are its results
    checkpoint: Path | None = None  # to resume from
    results: Results | None = None


def open_run(
    config: Config, run: Path, processes: str, may_change: frozenset[str] = frozenset(), overtake: bool = False
) -> Opening:
    """Create the run folder, or check that the run can resume in it, and claim the next attempt.

    Args:
        may_change: further keys that may differ when the run resumes.
        overtake: supersede an attempt that is still alive.

    Raises:
        UserError: the folder has a run that this config does not continue, or that another attempt is training.
    """
    found = None
    if holds_run(run):
        if config.resume == "never":
            raise UserError(f"{run}: contains a run already; resume it by resume=auto, or name another run=FOLDER")
        results = finished(config, run, may_change)
        if results is not None:
            with writing(run):
                ended = end_status(run, results.start, results.latent)
            trained = load_config(run / "config.yaml", stored=True).data
            data = f"data.path={trained.path} ({results.data})"
            print(printable(f"{run}: finished {ended.time}, trained on {data}; its results:"))
            return Opening(None, results=results)
        if config.resume == "auto":
            found = checkpoints.newest_checkpoint(run)
    if config.resume not in ("never", "auto"):
        found = _named(config, run, may_change)
    if found is not None:
        _check_state(config, found)
    known = checkpoints.list_checkpoints(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        attempt = attempts.claim(run, overtake)
    except OSError as error:
        raise UserError(f"run={run}: cannot be a run folder: {error.strerror}") from None
    # An attempt that has just ended may have saved, and removed what was the newest.
    if config.resume == "auto" and known != checkpoints.list_checkpoints(run):
        found = checkpoints.newest_checkpoint(run)
        if found is not None:
            _check_state(config, found)
    with writing(run):
        for folder in (run, run / "checkpoints"):
            sweep(folder)
        # A resumed run has no results until it ends again.
        for name in ("results.json", "sentences.parquet", "not_finite.json"):
            (run / name).unlink(missing_ok=True)
        write_text(run / "config.yaml", dump_config(config))
        write_json(run / "environment.json", environment(processes))
        write_status(run, "running", start=attempt.number)
    return Opening(attempt, found)


def pinned(config: Config, run: Path) -> DataConfig:
    """Return the settings of the data with a fixed meaning; see ``sources.pinned``. A run keeps what it began with.

    Raises:
        UserError: the hub or standard input cannot be read.
    """
    data = config.data
    known = run if config.resume in ("auto", "never") else Path(config.resume)
    stored = None
    with contextlib.suppress(UserError):
        there = load_config(known / "config.yaml", stored=True).data
        if data.path == there.path and data.revision is None:
            data = replace(data, revision=there.revision)
        stored = there.path if sources.is_stored_input(there.path) else None
    try:
        return sources.pinned(data, stored)
    except UserError as error:
        with contextlib.suppress(OSError, UserError):
            if not holds_run(run):
                write_status(run, "failed", str(error))
        raise


def finished(config: Config, run: Path, may_change: frozenset[str] = frozenset()) -> Results | None:
    """Return the results of the run in this folder if it has finished and this config asks for nothing more.

    Raises:
        FormatError: a newer version wrote the run.
        UserError: this config does not continue the run, or the run was trained on other sentences.
    """
    if not holds_run(run):
        return None
    for path in run.iterdir():
        inside(run, path.name)
    changed = _changed(load_config(run / "config.yaml", stored=True), config, run, may_change)
    if config.resume == "auto" and not changed and os.path.lexists(run / "results.json"):
        try:
            results = load_results(run)
        except FormatError:
            raise
        except UserError as error:  # damaged, or of a superseded attempt
            print(printable(f"distvae: WARNING {error}; the run's weights are scored again"), file=sys.stderr)
            return None
        try:
            _check_sentences(config, results.data, run)
        except UserError as error:
            raise UserError(f"{error}; this run has finished: distvae compare {run} prints its results") from None
        return results
    return None


def _named(config: Config, run: Path, may_change: frozenset[str]) -> Path:
    """Return the checkpoint that `resume` names.

    Raises:
        UserError: this config cannot resume from it in this folder.
    """
    folder = Path(config.resume).resolve()  # it may be the link `latest`
    if not folder.is_dir():
        raise UserError(f"resume={config.resume}: is neither auto nor never, nor the folder of a checkpoint")
    checkpoints.verify_checkpoint(folder)
    _changed(load_config(folder / "config.yaml", whole=True), config, folder, may_change)
    if holds_run(run) and not folder.is_relative_to(run.resolve()):
        raise UserError(
            f"resume={config.resume}: belongs to another run than the one in {run}; name another run=FOLDER"
        )
    return folder


def _changed(there: Config, here: Config, where: Path, may_change: frozenset[str]) -> set[str]:
    """Return the keys in which a config differs from the run that it resumes.

    Raises:
        UserError: another key differs.
    """
    started, unread = dict(flatten(there)), there.unread.keys() & here.unread.keys()
    # If only one of them has an option, the choices of a component differ too.
    changed = {
        key: value
        for key, value in flatten(here)
        if key in started and started[key] != value and key not in _IGNORED | unread
    }
    differing = [
        f"{key} ({started[key]} there, {value} here)"
        for key, value in changed.items()
        if key not in _MAY_CHANGE | may_change
    ]
    if differing:
        raise UserError(f"{where}: cannot resume under another config: {', '.join(differing)}; name another run=FOLDER")
    return set(changed)


def _check_state(config: Config, folder: Path) -> None:
    """Check that a config can resume from a checkpoint, before the run writes anything.

    Raises:
        UserError: the sentences or their ids have changed, or the config skips the checkpoint's stage, or changes
            the length of a finished pretraining.
    """
    state, there = checkpoints.load_state(folder), load_config(folder / "config.yaml", whole=True)
    if getattr(config, state.stage).max_epochs == 0:
        raise UserError(
            f"{folder}: was saved in stage {state.stage}, which {state.stage}.max_epochs=0 skips; set it above 0, or"
            " name another run=FOLDER"
        )
    if state.stage != "pretrain" and there.pretrain != config.pretrain:
        raise UserError(
            f"{folder}: its pretraining ended at pretrain.max_epochs={there.pretrain.max_epochs}, not"
            f" {config.pretrain.max_epochs}; name another run=FOLDER"
        )
    _check_sentences(config, state.data, folder)


def _check_sentences(config: Config, trained_on: str, where: Path) -> None:
    """Compare the sentences that a config names with those of a run.

    Args:
        trained_on: fingerprint of the run's sentences.

    Raises:
        UserError: they differ, or are missing.
    """
    found = corpus.fingerprint(config.data)
    if found != trained_on:
        raise UserError(
            f"{where}: was trained on other sentences ({trained_on}) than {config.data.path} holds now ({found}), or"
            " another version of distvae or NLTK prepared them; name another run=FOLDER"
        )
