"""Trains the rows of a table on this machine, several runs side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from distvae.system.cores import usable_cores
from distvae.system.errors import printable
from distvae.system.files import writing
from distvae.system.plural import counted
from distvae.system.signals import ENDED, INTERRUPTED, SIGNALS, Signals
from distvae.table.plan import PRECISION, ROOT, Row

# Most runs at once on a GPU, given as many cores: a small model leaves most of a GPU idle.
RUNS_PER_GPU = 8


@dataclass(frozen=True)
class Slot:
    """The GPU or the cores of one run at a time."""

    gpu: str | None
    threads: int


def slots(rows: list[Row], side_by_side: int | None) -> list[Slot]:
    """Return a slot for each run at a time, on the GPUs in turn."""
    import torch

    waiting = [row for row in rows if not row.finished]
    cores = usable_cores()
    gpus = [str(i) for i in range(torch.cuda.device_count())]
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
        self.running: dict[str, tuple[subprocess.Popen[bytes], Slot, IO[str]]] = {}
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
        where = counted(threads, "thread") if slot.gpu is None else f"GPU {slot.gpu}"
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
                code = INTERRUPTED if code == ENDED else code
                self.codes[name] = code
                how = {0: "finished", INTERRUPTED: "interrupted"}.get(code, f"failed with exit code {code}")
                print(f"{name}: {how}", flush=True)

    def _conclude(self) -> int:
        failed = [name for name, code in self.codes.items() if code not in (0, INTERRUPTED, None)]
        for name in failed:
            print(printable(f"distvae: {name} failed; see {self.folder / name}.log"), file=sys.stderr)
        if self.signals.asked is not None or INTERRUPTED in self.codes.values():
            print("interrupted; rerun the same command to resume", file=sys.stderr)
            return INTERRUPTED
        return 1 if failed else 0


def _waiting_for_signals(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
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
