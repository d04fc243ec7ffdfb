"""Attempts at a run: each takes the next number, and the last one counts.

A run may be launched again while processes of an earlier attempt are still alive, on a node that only seemed dead.
Neither a lock nor a check before each write stops such a process, because it may stall between the check and the write.
So everything that an attempt writes has its number, readers use the highest, and an attempt that sees a later one
stops.
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

# Seconds between heartbeats, and seconds without one after which an attempt on another machine counts as dead.
BEAT = 5.0
PATIENCE = 4 * BEAT

# Seconds in which the file of an attempt that has just begun is surely written.
WRITING = 1.0


@dataclass(frozen=True)
class Attempt:
    """An attempt at a run: ``starts/NUMBER.json``."""

    number: int
    host: str
    kernel: str  # the machine's boot and the container, in which `process` is valid
    process: int
    born: str  # start time of the process; a later process may have the same number
    job: str | None  # Slurm job, requeued `requeues` times so far
    requeues: int
    recorded_step: int | None = None  # step that it resumed from: later records are its own. None: not yet known
    ended: bool = False

    @property
    def readable(self) -> bool:
        """Whether its file is complete."""
        return self.born != ""

    @property
    def who(self) -> tuple[str, str, int, str]:
        """Identifies its process on any machine."""
        return self.host, self.kernel, self.process, self.born


# The attempts that this process makes, and has not ended.
_held: set[tuple[Path, int]] = set()


class SupersededError(UserError):
    """A later attempt has taken over the run, so this one must stop writing."""


def read_attempts(run: Path) -> list[Attempt]:
    """Return a run's attempts in order. An attempt whose file is truncated counts as ended."""
    return [*map(_read, _files(run))]


def responsible(attempts: list[Attempt], step: int) -> int:
    """Return the number of the attempt whose record of an epoch ending at ``step`` counts; 0 if there is none."""
    began = [one.number for one in attempts if one.recorded_step is not None and one.recorded_step < step]
    return max(began, default=0)


def last_begun(run: Path) -> int:
    """Return the number of the last attempt that has begun to record; 0 if there is none."""
    return max((one.number for one in read_attempts(run) if one.recorded_step is not None), default=0)


def claim(run: Path, overtake: bool = False) -> Attempt:
    """Become the last attempt at a run, unless another one is still alive.

    A job that Slurm has requeued supersedes its own earlier processes, which may live on a node that seemed dead.

    Args:
        overtake: supersede any other attempt too.

    Raises:
        UserError: another attempt is alive.
    """
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + WRITING
    while True:
        former = _last(run)
        if former is not None and not former.readable and time.monotonic() < end:
            time.sleep(WRITING / 20)
            continue
        number = 1 if former is None else former.number + 1
        job, requeues = os.environ.get("SLURM_JOB_ID"), environment_number("SLURM_RESTART_COUNT", 0)
        attempt = Attempt(number, socket.gethostname(), _kernel(), os.getpid(), _born(os.getpid()), job, requeues)
        if not (overtake or former is None or former.ended or _succeeds(attempt, former)) and _is_alive(run, former):
            raise UserError(
                f"{run}: attempt {former.number} is training it, as process {former.process} on {former.host}; wait for"
                " it, end it, or name another run=FOLDER"
            )
        try:
            with _file(run, number).open("x", encoding="utf-8") as file:
                json.dump(asdict(attempt), file)
        except FileExistsError:
            continue  # another attempt was faster
        return attempt


class Lease:
    """The main process's lease on a run: sends heartbeats and detects a later attempt."""

    def __init__(self, run: Path, attempt: Attempt):
        self._run, self._attempt = run, attempt
        self._key = run.resolve(), attempt.number
        _held.add(self._key)
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat of the run", daemon=True)
        self._thread.start()

    def begin(self, recorded_step: int) -> None:
        """Record the step after which all records belong to this attempt."""
        self._write(recorded_step=recorded_step)

    def check(self) -> None:
        """Check that this is still the last attempt.

        Raises:
            SupersededError: there is a later one, or the folder is gone or was created again.
        """
        last, mine = _last(self._run), self._attempt
        # A file that cannot be read now may be this attempt's.
        if last is None or last.number != mine.number or (last.readable and last.who != mine.who):
            self.lost = True
        if self.lost:
            if last is None or last.number < mine.number:
                why = "its folder is gone"
            elif last.number > mine.number:
                why = f"attempt {last.number} has taken over"
            else:
                why = f"process {last.process} on {last.host} has started it again in a new folder"
            raise SupersededError(f"{self._run}: {why}; attempt {mine.number} stops and writes nothing more")

    def release(self) -> None:
        """Record that this attempt has ended."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError, SupersededError):  # the end of the process shows it too
            self.check()
            self._write(ended=True)
        _held.discard(self._key)

    def _write(self, **changes: Any) -> None:
        self._attempt = replace(self._attempt, **changes)
        write_json(_file(self._run, self._attempt.number), asdict(self._attempt))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self.check()
                os.utime(_file(self._run, self._attempt.number))
            except (FileNotFoundError, SupersededError):
                self.lost = True
                return
            except OSError as error:  # a network file system may recover
                warning = f"distvae: WARNING {self._run}: no heartbeat: {error.strerror}"
                print(printable(warning), file=sys.stderr)


def _read(path: Path) -> Attempt:
    try:
        return read_as(Attempt, path, "an attempt at a run")
    except UserError:
        return Attempt(int(path.stem), "?", "?", 0, "", None, 0, ended=True)


def _last(run: Path) -> Attempt | None:
    files = _files(run)
    return _read(files[-1]) if files else None


def _file(run: Path, number: int) -> Path:
    return run / FOLDER / f"{number:04d}.json"


def _files(run: Path) -> list[Path]:
    return sorted(
        (path for path in (run / FOLDER).glob("*.json") if re.fullmatch(r"\d+", path.stem)), key=lambda p: int(p.stem)
    )


def _succeeds(attempt: Attempt, former: Attempt) -> bool:
    return attempt.job is not None and attempt.job == former.job and attempt.requeues > former.requeues


def _is_alive(run: Path, attempt: Attempt) -> bool:
    if attempt.kernel == _kernel():
        own = attempt.process == os.getpid()
        return _born(attempt.process) == attempt.born and (not own or (run.resolve(), attempt.number) in _held)
    waiting = f"{run}: waiting for a heartbeat of attempt {attempt.number} on {attempt.host} …"
    print(printable(waiting), file=sys.stderr)
    seen, end = _last_beat(run, attempt), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(BEAT / 10)
        if _last_beat(run, attempt) != seen:
            return True
    return False


def _last_beat(run: Path, attempt: Attempt) -> int:
    # An open file has the server's times, and those of a path may be cached.
    with _file(run, attempt.number).open() as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _kernel() -> str:
    """Return the scope of process numbers: this boot of this machine, and this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def living(process: int) -> tuple[str, int, str] | None:
    """Return a live process's name, parent and start time in kernel ticks; None for a dead one."""
    try:
        # The name, in parentheses, may contain anything.
        before, _, after = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    status = after.split()
    return None if status[0] in "ZX" else (before.partition(" (")[2], int(status[1]), status[19])


def _born(process: int) -> str:
    """Return a live process's start time; an empty string for a dead one."""
    found = living(process)
    return "" if found is None else found[2]
