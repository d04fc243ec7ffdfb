"""Who writes a run: every start of it takes the next number, and the last one counts.

A run may be started anew while processes of an earlier start still live, on a node that only seemed dead. No lock bars
such a copy, and no check before a write either, for it may be held up between the two. So what a start writes carries
its number, readers go by the highest, and a start that sees a later one stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distvae.system.errors import UserError, printable
from distvae.system.files import read_as, write_json
from distvae.system.launcher import number as environment_number

FOLDER = "starts"

# Seconds between a start's signs of life, and those without one after which a start on another machine is dead.
BEAT = 5.0
PATIENCE = 4 * BEAT


@dataclass(frozen=True)
class Attempt:
    """A start of a run: ``starts/NUMBER.json``."""

    number: int
    host: str
    kernel: str  # in which `process` names the main process
    process: int
    born: str  # tells this process from a later one of the same number
    job: str | None  # Slurm's, and how often that had been requeued
    requeues: int
    recorded_step: int | None = None  # the step that it went on from: all records after it are its own. None: not yet
    ended: bool = False


class SupersededError(UserError):
    """Another start has gone on with the run: this one has nothing more to say about it."""


def read_attempts(run: Path) -> list[Attempt]:
    """The starts of a run, in their order. One whose file was cut off counts, as of a process that is dead."""
    found = []
    for path in _files(run):
        try:
            found.append(read_as(Attempt, path, "a start of a run"))
        except UserError:
            found.append(Attempt(int(path.stem), "?", "?", 0, "", None, 0, ended=True))
    return found


def responsible(starts: list[Attempt], step: int) -> int:
    """The number of the start whose record of an epoch that ended at ``step`` counts; 0 where none can."""
    began = [start.number for start in starts if start.recorded_step is not None and start.recorded_step < step]
    return max(began, default=0)


def last_begun(run: Path) -> int:
    """The number of the last start that has begun to record; 0 where none has."""
    return max((start.number for start in read_attempts(run) if start.recorded_step is not None), default=0)


def claim(run: Path, overtake: bool = False) -> Attempt:
    """Become the last start of a run, unless another one still lives.

    A job that Slurm has requeued goes before its own former processes, which may live on where a node seemed dead.

    Args:
        overtake: go before any other too.

    Raises:
        UserError: another start lives.
    """
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    while True:
        former = next(reversed(read_attempts(run)), None)
        number = 1 if former is None else former.number + 1
        job, requeues = os.environ.get("SLURM_JOB_ID"), environment_number("SLURM_RESTART_COUNT", 0)
        start = Attempt(number, socket.gethostname(), _kernel(), os.getpid(), _born(os.getpid()), job, requeues)
        if not (overtake or former is None or former.ended or _succeeds(start, former)) and _lives(run, former):
            raise UserError(
                f"{run}: start {former.number} trains there, as process {former.process} of {former.host}; wait for it,"
                " end it, or name another run=FOLDER"
            )
        try:
            with _file(run, number).open("x", encoding="utf-8") as file:
                json.dump(asdict(start), file)
        except FileExistsError:
            continue  # another start was faster
        return start


class Lease:
    """The main process's hold on a run: gives signs of life, and sees whether another start goes on with it."""

    def __init__(self, run: Path, start: Attempt):
        self._run, self._start = run, start
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sign of life", daemon=True)
        self._thread.start()

    def begin(self, recorded_step: int) -> None:
        """Say from which step on the records are this start's."""
        self._write(recorded_step=recorded_step)

    def check(self) -> None:
        """See that this is still the last start.

        Raises:
            SupersededError: it is not.
        """
        last = max((int(path.stem) for path in _files(self._run)), default=0)
        if last != self._start.number:
            self.lost = True
        if self.lost:
            number = self._start.number
            why = f"start {last} goes on with it" if last > number else "its folder is gone"
            raise SupersededError(f"{self._run}: {why}; start {number} stops, and writes no more")

    def release(self) -> None:
        """Say that this start has ended."""
        self._ended.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):  # then the process's end tells it
                self._write(ended=True)

    def _write(self, **changes: Any) -> None:
        self._start = replace(self._start, **changes)
        write_json(_file(self._run, self._start.number), asdict(self._start))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                os.utime(_file(self._run, self._start.number))
                self.check()
            except (FileNotFoundError, SupersededError):
                self.lost = True
                return
            except OSError as error:  # of a network's file system, which may come back
                warning = f"distvae: WARNING {self._run}: no sign of life: {error.strerror}"
                print(printable(warning), file=sys.stderr)


def _file(run: Path, number: int) -> Path:
    return run / FOLDER / f"{number:04d}.json"


def _files(run: Path) -> list[Path]:
    return sorted(
        (path for path in (run / FOLDER).glob("*.json") if re.fullmatch(r"\d+", path.stem)), key=lambda p: int(p.stem)
    )


def _succeeds(start: Attempt, former: Attempt) -> bool:
    return start.job is not None and start.job == former.job and start.requeues > former.requeues


def _lives(run: Path, start: Attempt) -> bool:
    if start.kernel == _kernel():
        return _born(start.process) == start.born
    waiting = f"{run}: waiting for signs of life of start {start.number} on {start.host} …"
    print(printable(waiting), file=sys.stderr)
    seen, end = _last_beat(run, start), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(BEAT / 10)
        if _last_beat(run, start) != seen:
            return True
    return False


def _last_beat(run: Path, start: Attempt) -> int:
    # An opened file has the times that the server knows; those of a name may be remembered.
    with _file(run, start.number).open() as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _kernel() -> str:
    """Names where process numbers mean something: this boot of this machine, and this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def living(process: int) -> tuple[str, int, str] | None:
    """Return a living process's name, its parent, and when it began in its kernel's ticks; None for a dead one."""
    try:
        # The name, in brackets, may hold anything.
        before, _, after = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    status = after.split()
    return None if status[0] in "ZX" else (before.partition(" (")[2], int(status[1]), status[19])


def _born(process: int) -> str:
    """When a living process began; nothing for a dead one."""
    found = living(process)
    return "" if found is None else found[2]
