"""Trains every row of a table on this machine: ``python launch/table.py [option …] [key=value …]``.

A row is a config of the folder ``--rows``, and a training run for each seed; several runs train side by side. Rows with
pretraining start from the encoder of the row that pretrains alike and does nothing else. Rerun the same command to
resume: finished runs are skipped. At the end the program writes a report of all rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from distvae.config.keys import flatten, keys_with, known_keys, unread_options
from distvae.config.load import load_config, read_merged, with_precision
from distvae.config.schema import Config
from distvae.config.yaml import ConfigError
from distvae.sweeps.pretraining import source_of
from distvae.system.arguments import Parser, integer
from distvae.system.cores import usable_cores
from distvae.system.errors import UserError, printable
from distvae.system.files import writing
from distvae.system.programs import run_program
from distvae.system.roles import Role
from distvae.system.signals import ENDED, INTERRUPTED, SIGNALS, Signals

ROOT = Path(__file__).resolve().parents[1]

# Keys that each run gets its own value of.
OWN_KEYS = ("run", "seed", "pretrained")

# Keys of ``data`` in which rows may differ.
_PLACES = keys_with(Config, Role.PLACE)

# The precision of runs whose config sets none, as `accelerate launch` passes it.
PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"

# Most runs at once on a GPU, given as many cores: a small model leaves most of a GPU idle.
RUNS_PER_GPU = 8


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the rows. Return 0 when all have finished, 1 when one has failed, 2 on bad input, 75 when interrupted, and
    130 after Ctrl-C before a run has started."""
    signals = Signals()
    return run_program(lambda: _carry_out(_parser().parse_args(arguments), signals), signals=signals)


def _carry_out(options: argparse.Namespace, signals: Signals) -> int:
    names = [options.rows.resolve().name, *([] if options.corpus is None else [options.corpus.stem])]
    folder = options.folder or Path("runs", "table", "-".join(names))
    rows = plan(options.rows, folder, options.seeds, options.overrides, options.corpus, options.epochs)
    if options.plan:
        print_plan(rows)
        return 0
    from distvae.data import corpus
    from distvae.reports import comparison, document, report  # slow imports, which --plan does not need

    free = slots(rows, options.side_by_side)
    # Prepare the sentences here, so that an error is reported once and not by every row.
    for data in dict.fromkeys(row.config.data for row in rows if not row.finished):
        corpus.prepare(data, progress=sys.stderr.isatty())
    code = Table(rows, folder, free, signals).run()
    begun = [folder / row.name for row in rows if (folder / row.name / "config.yaml").is_file()]
    if code != INTERRUPTED and begun:
        comparison.show_parts(document.tables(report.write(begun, folder)))
        print(printable(folder / "report.html"))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="launch/table.py",
        description="Train every row of a table, and report on them.",
        settings=set(known_keys(Config)) - set(OWN_KEYS),
    )
    parser.add_argument(
        "--rows", type=Path, default=Path("configs/snli"), metavar="FOLDER",
        help="the folder with a config for each row (default: configs/snli, the paper's Table 1)",
    )  # fmt: skip
    parser.add_argument(
        "--corpus", type=Path, metavar="FILE",
        help="settings of every row, as a config file; key=value overrides them (such as configs/corpus/snli.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=integer(1), metavar="N", help="at most N epochs for each row in all, its pretraining included"
    )
    parser.add_argument(
        "--folder", type=Path, help="the folder of all runs (default: runs/table/ and the names of --rows and --corpus)"
    )
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="S,S,…", help="default 0,1,2")
    parser.add_argument(
        "--side-by-side", type=int, metavar="N",
        help=f"runs at once (default: one per core; with GPUs, up to {RUNS_PER_GPU} per GPU)",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="print the runs and what each waits for, and train none")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings of every row, such as data.path=FOLDER"
    )
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: should be numbers with commas between, such as 0,1,2") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: should be different numbers from 0")
    return seeds


# -- The plan ----------------------------------------------------------------------------------------------------------


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
        UserError: a config or an override cannot be used, rows have different sentences or no pretraining, or a run's
            folder exists with another config.
    """
    from distvae.runs.resume import finished

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
    after = {file: source_of(file, loaded) for file in files}
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


# -- The machine -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """The GPU or the cores of one run at a time."""

    gpu: str | None
    threads: int


def slots(rows: list[Row], side_by_side: int | None) -> list[Slot]:
    """Return a slot for each run at a time, on the GPUs in turn.

    Raises:
        UserError: ``side_by_side`` is below 1.
    """
    import torch

    if side_by_side is not None and side_by_side < 1:
        raise UserError(f"--side-by-side {side_by_side}: should be at least 1")
    waiting = [row for row in rows if not row.finished]
    cores = usable_cores()
    gpus: list[str | None] = [str(i) for i in range(torch.cuda.device_count())]
    if os.environ.get("CUDA_VISIBLE_DEVICES") and gpus:
        gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",")[: len(gpus)]
    most = max(1, min(len(waiting), cores, len(gpus) * RUNS_PER_GPU if gpus else cores))
    count = side_by_side or most
    return [Slot(gpus[i % len(gpus)] if gpus else None, max(1, cores // count)) for i in range(count)]


class Table:
    """Trains the rows in the slots.

    Args:
        folder: the folder of all runs and of their logs.
        signals: the signals that ask to stop.
    """

    def __init__(self, rows: list[Row], folder: Path, slots: list[Slot], signals: Signals):
        self.rows, self.folder, self.signals = rows, folder, signals
        self.free = slots
        self.running: dict[str, tuple[subprocess.Popen, Slot, IO[str]]] = {}
        self.codes: dict[str, int | None] = {row.name: 0 for row in rows if row.finished}  # None: not started
        self.told = False  # whether the runs have been asked to stop

    def run(self) -> int:
        """Train the rows that have not finished. Return the program's exit code.

        Raises:
            UserError: the folder cannot be written.
        """
        for row in self.rows:
            if row.finished:
                print(f"{row.name}: finished")
        with self.signals.deferred():
            while self.running or (self.signals.asked is None and len(self.codes) < len(self.rows)):
                self._fill()
                self._wait()
        return self._conclude()

    def _fill(self) -> None:
        """Start runs that need not wait, while slots are free."""
        for row in self.rows:
            if row.name in self.codes or row.name in self.running:
                continue
            source = 0 if row.after is None else self.codes.get(row.after)
            if source:
                self.codes[row.name] = None
                print(f"{row.name}: not started, because its pretraining {row.after} did not finish")
            elif source == 0 and self.free and self.signals.asked is None:
                self._start(row, self.free.pop(0))

    def _start(self, row: Row, slot: Slot) -> None:
        # The variable of `accelerate launch` has a run end when its parent process does.
        environment = os.environ | {"ACCELERATE_MIXED_PRECISION": PRECISION, "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        more = []
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        elif row.config.cpu_threads is None:
            more = [f"cpu_threads={slot.threads}"]
        log = self.folder / f"{row.name}.log"
        with writing(self.folder):
            log.parent.mkdir(parents=True, exist_ok=True)
            kept, said = log.open("a", encoding="utf-8"), log.open(encoding="utf-8", errors="replace")
        said.seek(0, os.SEEK_END)
        with kept:
            child = _waiting_for_signals(
                row.command(*more), stdout=kept, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment, start_new_session=True,
            )  # fmt: skip
        self.running[row.name] = child, slot, said
        threads = row.config.cpu_threads or slot.threads
        where = f"{threads} thread{'s' if threads > 1 else ''}" if slot.gpu is None else f"GPU {slot.gpu}"
        print(printable(f"{row.name}: on {where}; its output is in {log}"), flush=True)

    def _wait(self) -> None:
        """After a moment, pass on a signal, print new lines of the runs, and handle those that have ended."""
        time.sleep(0.2)
        if self.signals.asked is not None and not self.told:
            self.told = True
            for child, _, _ in self.running.values():
                child.send_signal(signal.Signals[self.signals.asked])
        for name, (child, slot, said) in list(self.running.items()):
            code = child.poll()
            _show(name, said)
            if code is not None:
                said.close()
                del self.running[name]
                self.free.append(slot)
                # A run that gets SIGINT before it has anything to save ends at once, and can be started again.
                self.codes[name] = INTERRUPTED if code == ENDED else code
                how = {0: "finished", INTERRUPTED: "interrupted"}.get(self.codes[name], f"failed with exit code {code}")
                print(f"{name}: {how}", flush=True)

    def _conclude(self) -> int:
        failed = [name for name, code in self.codes.items() if code not in (0, INTERRUPTED, None)]
        for name in failed:
            print(printable(f"distvae: {name} failed; see {self.folder / name}.log"), file=sys.stderr)
        if self.signals.asked is not None or INTERRUPTED in self.codes.values():
            print("interrupted; rerun the same command to resume", file=sys.stderr)
            return INTERRUPTED
        return 1 if failed else 0


def _waiting_for_signals(command: list[str], **how: Any) -> subprocess.Popen:
    """Start a run with its signals blocked, which it unblocks once it can handle them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(command, **how)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _show(name: str, said: IO[str]) -> None:
    """Print the new lines of a run that are about an epoch, a warning or an error."""
    while True:
        begun = said.tell()
        line = said.readline()
        if not line.endswith("\n"):
            said.seek(begun)  # an incomplete line
            return
        if line.startswith(("pretrain ", "train ", "distvae: ", "WARNING ")):
            print(f"{name:<18} {printable(line.rstrip())}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
