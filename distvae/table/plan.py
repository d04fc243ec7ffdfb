"""The plan of a table: a run for each row and seed, after the run whose pretraining it uses."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import distvae
from distvae.config.keys import flatten, keys_with, unread_options
from distvae.config.load import load_config, read_merged, with_precision
from distvae.config.schema import Config, Precision
from distvae.config.yaml import ConfigError
from distvae.sweeps.pretraining import source_of
from distvae.system.errors import UserError, printable
from distvae.system.roles import Role

# The folder of the package that trains the rows.
ROOT = Path(distvae.__file__).resolve().parents[1]

# Keys that each run gets its own value of.
OWN_KEYS = ("run", "seed", "pretrained")

# Keys of ``data`` in which rows may differ.
_PLACES = keys_with(Config, Role.PLACE)

# The precision of runs whose config sets none, as `accelerate launch` passes it.
PRECISION = cast("Precision", os.environ.get("ACCELERATE_MIXED_PRECISION") or "no")


@dataclass(frozen=True)
class Row:
    """A run of the table."""

    name: str  # its folder, below the folder of the table
    config_file: Path
    overrides: tuple[str, ...]
    config: Config
    after: str | None  # the run whose pretraining it uses
    finished: bool

    def command(self, *more: str) -> list[str]:
        """Return the command line that trains this row, with more overrides."""
        return [sys.executable, str(ROOT / "distvae" / "train.py"), str(self.config_file), *self.overrides, *more]


def plan(
    configs: Path,
    folder: Path,
    seeds: Sequence[int],
    overrides: Sequence[str],
    corpus: Path | None = None,
    epochs: int | None = None,
) -> list[Row]:
    """Return the runs of all rows and seeds, each after the one whose pretraining it uses.

    Args:
        folder: of all runs.
        overrides: ``key=value`` for the rows that read the key; no row reads one: an error.
        corpus: a file with further settings, below the overrides.
        epochs: of each row, its pretraining included.

    Raises:
        UserError: a config or an override cannot be used, the sentences are on standard input, rows have different
            sentences or no pretraining, or a run's folder exists with another config.
    """
    files = sorted(configs.glob("*.yaml"))
    if not files:
        raise UserError(f"--rows {configs}: holds no config (*.yaml)")
    for file in files:  # the name of a run, of its log, and of a line of the plan
        if printable(file.name) != file.name:
            raise UserError(f"{file}: has a name that a terminal cannot show; give it another")
    shared = [] if corpus is None else _settings_in(corpus, {override.partition("=")[0] for override in overrides})
    for override in [*shared, *overrides]:
        if override.partition("=")[0] in OWN_KEYS:
            raise ConfigError(f"{override}: each row has its own {', '.join(OWN_KEYS)}; see --folder and --seeds")
    own = {file: _overrides_of(file, [*shared, *overrides]) for file in files}
    for override in overrides:
        if not any(override in given for given in own.values()):
            raise ConfigError(f"{override}: no row of {configs} reads it")
    loaded = {file: load_config(file, own[file]) for file in files}
    if epochs is not None:
        own = {file: [*own[file], *_share_of(epochs, file, config)] for file, config in loaded.items()}
        loaded = {file: load_config(file, own[file]) for file in files}
    _check_sentences(loaded)
    from distvae.data.sources import STANDARD_INPUT  # late, because it imports pyarrow

    if loaded[files[0]].data.path == STANDARD_INPUT:
        raise ConfigError("data.path=-: every row reads the sentences; write them to a file and pass its path")
    after = {file: source_of(file, loaded) for file in files}
    from distvae.runs.resume import finished  # late, because it imports PyTorch

    rows = []
    for seed in seeds:
        for file in sorted(files, key=lambda file: loaded[file].train.max_epochs > 0):  # what others wait for first
            name, source = f"seed-{seed}/{file.stem}", after[file]
            given = [*own[file], f"run={folder / name}", f"seed={seed}"]
            waits = None if source is None else f"seed-{seed}/{source.stem}"
            if waits is not None:
                given.append(f"pretrained={folder / waits}")
            config = load_config(file, given)
            config = with_precision(config, config.optimizer.mixed_precision or PRECISION)
            rows.append(Row(name, file, tuple(given), config, waits, finished(config, folder / name) is not None))
    return rows


def _settings_in(corpus: Path, overridden: set[str]) -> list[str]:
    """Return the settings of a file as ``key=value``, without those that are overridden."""
    settings = {key: value for key, value in flatten(read_merged(corpus)) if key not in overridden}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def _overrides_of(file: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a row reads: not those of a stage, a policy, free bits or a latent variable that it
    lacks."""
    config = load_config(file)
    missing = {f"{name}.max_epochs" for name in ("pretrain", "train") if not getattr(config, name).max_epochs}
    if config.language_model:
        missing |= {*config.unread, "model.latent_size"}
    given = [override for override in overrides if override.partition("=")[0] not in missing]
    unread = unread_options(load_config(file, given, stored=True)).keys()
    return [override for override in given if override.partition("=")[0] not in unread]


def _share_of(epochs: int, file: Path, config: Config) -> list[str]:
    """Return what leaves a row's last stage its share of all epochs."""
    before = config.pretrain.max_epochs
    if not config.train.max_epochs:
        return []
    if epochs <= before:
        raise UserError(f"--epochs {epochs}: {file} pretrains for {before}; give more, or a lower pretrain.max_epochs")
    return [f"train.max_epochs={epochs - before}"]


def _check_sentences(loaded: dict[Path, Config]) -> None:
    """Check that all rows have the same sentences and words, because others cannot be compared.

    Raises:
        UserError: they differ.
    """
    first, *others = loaded
    expected = dict(flatten(loaded[first]))
    for file in others:
        for key, value in flatten(loaded[file]):
            if key.startswith("data.") and key not in _PLACES and value != expected[key]:
                raise UserError(
                    f"{file}: {key} is {value}, and {expected[key]} in {first.name}; the rows of a table need the same"
                    " sentences"
                )


def print_plan(rows: list[Row]) -> None:
    """Print a line for each run, quoted for a shell: its name; `finished`, the run that it waits for, or a dash if it
    need not wait; its config and overrides."""
    done = {row.name for row in rows if row.finished}
    for row in rows:
        waits = "-" if row.after is None or row.after in done else row.after
        state = "finished" if row.finished else waits
        print(shlex.join([row.name, state, str(row.config_file), *row.overrides]))
