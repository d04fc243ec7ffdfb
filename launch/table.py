"""Trains every row of the paper's Table 1 on this machine: ``python launch/table.py [option …] [key=value …]``.

Each row is a training run, and several run side by side. Rows with pretraining start from the autoencoder's encoder.
Rerun the same command to resume: finished runs are skipped. At the end the program writes a report of all rows.
"""

from __future__ import annotations

import argparse
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

from distvae.config.keys import known_keys, unread_options
from distvae.config.load import load_config, with_precision
from distvae.config.schema import Config
from distvae.config.yaml import ConfigError
from distvae.system.arguments import Parser
from distvae.system.cores import usable_cores
from distvae.system.errors import UserError, printable
from distvae.system.files import writing
from distvae.system.programs import run_program
from distvae.system.signals import ENDED, INTERRUPTED, SIGNALS, Signals

ROOT = Path(__file__).resolve().parents[1]

# Keys that each run gets its own value of.
OWN_KEYS = ("run", "seed", "pretrained")

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
    folder = options.folder or Path("runs", "table", options.rows.resolve().name)
    rows = plan(options.rows, folder, options.seeds, options.overrides)
    if options.plan:
        print_plan(rows)
        return 0
    from distvae.data import corpus
    from distvae.reports import comparison, paper_report  # slow imports, which --plan does not need

    free = slots(rows, options.side_by_side)
    for data in dict.fromkeys(row.config.data for row in rows if not row.finished):
        corpus.prepare(
            data, progress=sys.stderr.isatty()
        )  # here, so that an error is reported once and not by every row
    code = Table(rows, folder, free, signals).run()
    begun = [folder / row.name for row in rows if (folder / row.name / "config.yaml").is_file()]
    if code != INTERRUPTED and begun:
        comparison.show_parts(paper_report.tables(paper_report.write(begun, folder)))
        print(printable(folder / "report.html"))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="launch/table.py",
        description="Train every row of the paper's Table 1.",
        settings=set(known_keys(Config)) - set(OWN_KEYS),
    )
    parser.add_argument(
        "--rows", type=Path, default=Path("configs/snli"), metavar="FOLDER",
        help="the folder with a config for each row (default configs/snli)",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, help="the folder of all runs (default: runs/table/ and the name of --rows)"
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


def plan(configs: Path, folder: Path, seeds: Sequence[int], overrides: Sequence[str]) -> list[Row]:
    """Return the runs of all rows and seeds, each after the one whose pretraining it uses.

    Raises:
        UserError: a config or an override cannot be used, or a run's folder exists with another config.
    """
    from distvae.runs.resume import finished

    files = sorted(configs.glob("*.yaml"))
    if not files:
        raise UserError(f"--rows {configs}: holds no config (*.yaml)")
    for file in files:  # the name of a run, of its log, and of a line of the plan
        if printable(file.name) != file.name:
            raise UserError(f"{file}: has a name that a terminal cannot show; give it another")
    for override in overrides:
        if override.partition("=")[0] in OWN_KEYS:
            raise ConfigError(f"{override}: each row has its own {', '.join(OWN_KEYS)}; see --folder and --seeds")
    loaded = {file: load_config(file) for file in files}
    given = {file: _overrides_of(file, config, overrides) for file, config in loaded.items()}
    for override in overrides:
        if not any(override in own for own in given.values()):
            raise ConfigError(f"{override}: no row of {configs} reads it")
    sources = [file for file, config in loaded.items() if not config.train.max_epochs]
    needing = [file for file, config in loaded.items() if config.train.max_epochs and config.pretrain.max_epochs]
    if needing and len(sources) != 1:
        raise UserError(
            f"--rows {configs}: {', '.join(file.name for file in needing)} need pretraining from exactly one row that"
            f" only pretrains (train.max_epochs: 0), but there are {len(sources)}"
        )
    rows = []
    for seed in seeds:
        for file in [*sources, *(file for file in files if file not in sources)]:
            name = f"seed-{seed}/{file.stem}"
            after = f"seed-{seed}/{sources[0].stem}" if file in needing else None
            own = [*given[file], f"run={folder / name}", f"seed={seed}"]
            if after is not None:
                own.append(f"pretrained={folder / after}")
            config = load_config(file, own)
            config = with_precision(config, config.optimizer.mixed_precision or PRECISION)
            rows.append(Row(name, file, tuple(own), config, after, finished(config, folder / name) is not None))
    return rows


def _overrides_of(file: Path, config: Config, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a row reads: not those of a stage, a policy or free bits that it does not have."""
    unread = unread_options(load_config(file, overrides, stored=True)).keys()
    missing = {f"{name}.max_epochs" for name in ("pretrain", "train") if not getattr(config, name).max_epochs}
    return [override for override in overrides if override.partition("=")[0] not in missing | unread]


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
