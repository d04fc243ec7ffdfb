"""The probes of many runs, as in a table: which of them count, and how to complete them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from distvae.config.schema import CAPTIONS, DataConfig, OptimizerConfig
from distvae.data import captions
from distvae.distributed.runtime import Runtime
from distvae.evaluation.probes import check_installed
from distvae.runs import finding, probing, reading
from distvae.runs.finding import RESULTS
from distvae.runs.probing import Probes
from distvae.runs.results import Results, load_results
from distvae.system.errors import UserError
from distvae.system.files import read_manifest
from distvae.system.formats import FormatError

# What the probes of a table learn from, and the seed of their draws.
COUNTS, SEED = (100, 1000, None), 0


def flaw(found: Probes, run: Path, results: Results) -> str | None:
    """Return why the probes in a run's folder are not those of its model and test sentences; None if they are.

    Raises:
        UserError: the run's model is missing or damaged.
    """
    weights = read_manifest(run / "best").files["model.safetensors"].sha256
    if weights not in found.models.values():
        return "are of other weights"
    if found.data != results.data:
        return "are of other sentences"
    if found.split != results.split:
        return f"are of {found.split}, not of {results.split}"
    if found.seed != SEED:
        return f"are drawn by seed {found.seed}, not {SEED}"
    return None


def of_model(found: Probes, run: Path) -> str:
    """Return the name that the probes give to the run's model. They have no ``flaw``."""
    weights = read_manifest(run / "best").files["model.safetensors"].sha256
    return next(name for name, own in found.models.items() if own == weights)


def complete(runs: Sequence[Path], labels: Sequence[str]) -> list[Path]:
    """Probe z of each finished run that has one, unless its probes count and are of these labels.

    Args:
        labels: columns; empty: those that each training kept.

    Returns:
        the runs that were probed. Their ``probes.json`` is written one by one.

    Raises:
        UserError: scikit-learn is missing, sentences have no labels or are not those of a run, or a file is missing,
            damaged, or cannot be written.
    """
    check_installed("--probe")
    with contextlib.closing(Runtime(OptimizerConfig(mixed_precision="no"))) as runtime:
        return _complete(runs, labels, runtime)


def _complete(runs: Sequence[Path], labels: Sequence[str], runtime: Runtime) -> list[Path]:
    done, known = [], None
    for run in runs:
        if not (run / RESULTS).is_file():
            continue
        found, results = finding.of_folder(str(run)), load_results(run)
        if found.export.config.language_model:
            continue
        data = reading.with_labels(reading.own_settings(found.export), labels)
        there = _valid(run, results, columns_of(data))
        if there is None:
            text = reading.own_text(str(run), found.export, data, runtime)
            if text.fingerprint != results.data:
                raise UserError(
                    f"{run}: its sentences are not those that it was trained and tested on ({text.fingerprint}, not"
                    f" {results.data}), so it cannot be probed in a table"
                )
            encoded = probing.encode(run.name, found.export, text, results.split, runtime)
            there = probing.probe([encoded], results.split, COUNTS, True, SEED, runtime.is_main, known)
            there.save(run / probing.PROBES)
            done.append(run)
        known = there
    return done


def columns_of(data: DataConfig) -> tuple[str, ...]:
    """Return the columns of labels of sentences."""
    return captions.Factors._fields if data.path == CAPTIONS else data.labels


def _valid(run: Path, results: Results, columns: Sequence[str]) -> Probes | None:
    """Return the probes of a run if they count, are of these columns, and include those of all labelled sentences."""
    try:
        found = probing.load(run)
    except FormatError:
        raise
    except UserError:  # damaged
        return None
    if found is None or flaw(found, run, results) is not None:
        return None
    left_out = {name for name in columns for note in found.notes if note.startswith(f"{name}: ")}
    whole = {name for name, column in found.columns.items() if column.train in column.probes[0].accuracy}
    return found if {*columns} <= whole | left_out else None
