"""What a person sees of a run: a progress bar, a line per epoch, metrics.jsonl, TensorBoard, status.json."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from distvae import __version__
from distvae.evaluation.liveness import Latent, LatentState
from distvae.evaluation.scoring import LARGEST_SCORE, Scores, sums_agree
from distvae.runs import starts
from distvae.system.errors import UserError, one_line
from distvae.system.files import (
    check_as,
    damaged,
    flush,
    parse_json,
    read_as,
    read_text,
    sha256,
    write_json,
    write_text,
)
from distvae.system.markdown import escaped
from distvae.system.settings import Count

# So many epochs in a row with a latent that is not alive are worth a warning: the first ones of a stage may be so.
_LASTING = 3

# Of one stretch of work; no clock measures longer ones.
Seconds = Annotated[float, Field(ge=0, le=1e10)]


@dataclass(frozen=True)
class TrainEpoch:
    """One epoch's training, over all ranks: nats a sentence, with dropout on and while the weights moved."""

    re: float
    kl: float
    neg_elbo: float
    objective: float  # RE + γ·KL̃
    kl_per_dimension: tuple[float, ...]
    sentences: Annotated[int, Field(ge=1)]
    skipped: Count  # sentences beside these, of steps that were left out because they were not finite
    seconds: Annotated[float, Field(gt=0, le=1e10)]

    @property
    def sentences_per_second(self) -> float:
        return self.sentences / self.seconds


@dataclass(frozen=True)
class Saving:
    """What checkpoints have cost since the record before."""

    count: Count
    stall_seconds: Seconds  # for which training stood still
    write_seconds: Seconds  # in another thread


@dataclass(frozen=True)
class EpochRecord:
    """A line of metrics.jsonl."""

    stage: Literal["pretrain", "train"]
    epoch: Annotated[int, Field(ge=1)]  # within the stage, from 1
    step: Count  # optimizer steps of the run so far
    kl_weight: Annotated[float, Field(ge=0, le=LARGEST_SCORE)]  # γ, as the epoch ended
    learning_rate: Annotated[float, Field(ge=0, le=LARGEST_SCORE)]
    train: TrainEpoch
    valid: Scores
    valid_seconds: Seconds
    # What the plateau rule made of it; "not counted" where it was not asked.
    verdict: Literal["improved", "wait", "decay", "stop", "not counted"]
    saving: Saving
    start: int  # number of the start of the run that trained the end of it
    latent: Latent | None = None  # by the validation sentences; None: too few to judge it by

    def line(self) -> str:
        """The epoch in one line."""
        mark = {"improved": "best", "not counted": "", "wait": ""}.get(self.verdict, self.verdict)
        if self.train.skipped:
            mark = f"{self.train.skipped} sentences skipped, not finite  {mark}"
        if self.latent is not None and self.latent.state != "alive":
            mark = f"{self.latent.state}  {mark}"
        return (
            f"{self.stage:<8} {self.epoch:>3}  γ {self.kl_weight:<5.3f} lr {self.learning_rate:<7.3g}"
            f" train RE {self.train.re:6.2f} KL {self.train.kl:5.2f}  valid RE {self.valid.re.mean:6.2f}"
            f" KL {self.valid.kl.mean:5.2f} −ELBO {self.valid.neg_elbo.mean:6.2f}"
            f"{'' if self.valid.nll is None else f' NLL {self.valid.nll.mean:6.2f}'}"
            f" MI {round(self.valid.mutual_information.mean, 2) + 0.0:4.2f} AU {self.valid.active_units:>2}"
            f"  {self.train.sentences_per_second:6.0f}/s  {mark}"
        ).rstrip()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records that count, in their order, as plain values.

    A start that was thought dead may have gone on writing: what it wrote beyond the step at which a later one took over
    is left out, and so is a line whose end was cut off.

    Raises:
        UserError: the file cannot be read, or a line of it is not a record.
    """
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return []
    lines = read_text(path).split("\n")[:-1]
    rows = [_row(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
    begun = starts.read_starts(run)
    counting = [row for row in rows if row["start"] >= starts.responsible(begun, row["step"])]
    for before, row in itertools.pairwise(counting):
        follows = before["epoch"] + 1 if row["stage"] == before["stage"] else 1
        if row["step"] <= before["step"] or row["epoch"] != follows:
            one, other = (f"{r['stage']} epoch {r['epoch']} at step {r['step']}" for r in (before, row))
            raise damaged(path, "a run's records", f"{other} comes after {one}")
    return counting


def _row(line: str, source: str) -> dict[str, Any]:
    """A line as plain values, once it is known to be an ``EpochRecord``, and one whose numbers agree."""
    row = parse_json(line, source)
    if isinstance(row, dict):
        row.setdefault("valid_seconds", 0.0)  # which the first version did not record
    record = check_as(EpochRecord, row, source, _RECORD)
    train = record.train
    why = record.valid.contradiction
    if not sums_agree(train.neg_elbo, train.re + train.kl):
        why = why or f"neg_elbo of train is {train.neg_elbo}, and re + kl is {train.re + train.kl}"
    if not sums_agree(train.kl, sum(train.kl_per_dimension)):
        why = why or f"kl of train is {train.kl}, and its dimensions add up to {sum(train.kl_per_dimension)}"
    if why is not None:
        raise damaged(source, _RECORD, why)
    return row


_RECORD = "a record of an epoch"


class Tracker:
    """Writes a run's records. Only the main process has one.

    Args:
        run: the run's folder.
        step: what was recorded up to this step stands; what comes after it, of a start that did not live to save it, is
            dropped.
    """

    def __init__(self, run: Path, step: int = 0):
        self._name, self._metrics = run.name, run / "metrics.jsonl"
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        write_text(self._metrics, "".join(_line(row) for row in kept))
        self._latent: LatentState | None = None  # of the last record
        self._lifeless = 0  # epochs in a row, of a stage, whose latent was not alive
        for row in kept:
            self._follow_latent(row["epoch"], (row.get("latent") or {}).get("state"))
        self._folder = run / "tensorboard"
        self._await_turn()
        self._board = SummaryWriter(self._folder, purge_step=step + 1)

    def epoch(self, record: EpochRecord) -> bool:
        """Record an epoch in metrics.jsonl, in TensorBoard and on the terminal.

        Returns:
            Whether the latent's state is another than in the epoch before.
        """
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(_line(asdict(record)))
        flush(self._metrics)
        step, train, valid = record.step, record.train, record.valid
        for name in ("re", "kl", "neg_elbo"):
            self._board.add_scalar(f"{name}/train", getattr(train, name), step)
            self._board.add_scalar(f"{name}/valid", getattr(valid, name).mean, step)
        if valid.nll is not None:
            self._board.add_scalar("nll/valid", valid.nll.mean, step)
        self._board.add_scalar("objective/train", train.objective, step)
        self._board.add_scalar("control/kl_weight", record.kl_weight, step)
        self._board.add_scalar("control/learning_rate", record.learning_rate, step)
        self._board.add_scalar("latent/active_units", valid.active_units, step)
        self._board.add_scalar("latent/mutual_information", valid.mutual_information.mean, step)
        self._board.add_scalar("throughput/sentences_per_second", train.sentences_per_second, step)
        self._board.add_scalar("throughput/checkpoint_stall_seconds", record.saving.stall_seconds, step)
        for d, kl in enumerate(valid.kl_per_dimension):
            self._board.add_scalar(f"latent_kl/{d:02d}", kl, step)
        lines, former, state = [record.line()], self._latent, record.latent and record.latent.state
        if state is not None:
            self._board.add_scalar("latent/alive", state == "alive", step)
        self._follow_latent(record.epoch, state)
        if self._lifeless == _LASTING:
            warning = f"for {_LASTING} epochs of {record.stage} the latent has been {state}: {record.latent.advice}"
            self._board.add_text("warnings", escaped(warning), step)
            lines.append(f"WARNING {self._name}: {warning}")
        tqdm.write("\n".join(lines), file=sys.stdout)
        sys.stdout.flush()
        return state != former

    def _follow_latent(self, epoch: int, state: LatentState | None) -> None:
        self._latent = state
        self._lifeless = 0 if state in (None, "alive") else 1 if epoch == 1 else self._lifeless + 1

    def sentences(self, name: str, sentences: list[str], step: int) -> None:
        """Show sentences as text in TensorBoard."""
        # TensorBoard takes it for Markdown.
        self._board.add_text(name, "\n".join(f"- {escaped(sentence)}" for sentence in sentences), step)

    def flush(self) -> None:
        """See that all is on disk: a checkpoint that follows goes on behind it."""
        self._board.flush()
        for path in self._events()[-1:]:
            flush(path)

    def close(self) -> None:
        self._board.close()

    def _events(self) -> list[Path]:
        return sorted(self._folder.glob("events.out.tfevents.*"))

    def _await_turn(self) -> None:
        """TensorBoard reads files in the order of their names, which begin with a second: never one in that of another.

        A clock that is further behind than this is not waited for.
        """
        seconds = [int(word) for path in self._events() if (word := path.name.split(".")[3]).isdecimal()]
        end = time.monotonic() + 5
        while seconds and int(time.time()) <= max(seconds) and time.monotonic() < end:
            time.sleep(0.02)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


class Progress:
    """A progress bar over sentences, some done already; silent where ``shown`` is False or stderr is no terminal."""

    def __init__(self, description: str, total: int, shown: bool, done: int = 0):
        self.shown = shown and sys.stderr.isatty()
        self._bar = tqdm(
            desc=description,
            total=total,
            initial=done,
            unit=" sentences",
            leave=False,
            disable=not self.shown,
            dynamic_ncols=True,
        )

    def advance(self, sentences: int, **values: float) -> None:
        """Say how many more sentences are done, and show values beside the bar."""
        if values:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
        self._bar.update(sentences)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()


@dataclass(frozen=True)
class Status:
    """What a run's ``status.json`` holds."""

    state: Literal["running", "finished", "interrupted", "failed"]
    reason: str | None
    time: str
    start: int | None  # number of the attempt
    latent: Latent | None = None  # by the last scores; None: of an older version, or too few sentences to judge it by


def write_status(
    run: Path, state: str, reason: str | None = None, start: int | None = None, latent: Latent | None = None
) -> None:
    """Write ``run/status.json``: whether the run is running, finished, interrupted or failed, why, and its latent.

    Launchers hide a program's exit code; this file does not.
    """
    run.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(run / "status.json", asdict(Status(state, reason and one_line(reason), now, start, latent)))


def read_status(run: Path) -> Status:
    """Read a run's ``status.json``.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    return read_as(Status, run / "status.json", "the status of a run")


def last_latent(run: Path) -> Latent | None:
    """The latent by a run's last record; None where there is none to be read."""
    with contextlib.suppress(UserError):
        rows = read_metrics(run)
        if rows and rows[-1].get("latent") is not None:
            return Latent(**rows[-1]["latent"])
    return None


def end_status(run: Path, start: int, latent: Latent | None) -> Status:
    """Return a finished run's status, written first where its process was killed between its last files."""
    with contextlib.suppress(UserError):
        status = read_status(run)
        if status.state == "finished":
            return status
    write_status(run, "finished", start=start, latent=latent)
    return read_status(run)


def environment(processes: str) -> dict[str, Any]:
    """Versions, machine, processes and commit that a run was made with."""
    packages = ("torch", "accelerate", "datasets", "numpy", "nltk")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": device_name(),
        "processes": processes,
        # A copy of the code that a cluster's job runs need not be installed.
        "packages": {"distvae": __version__} | {name: version(name) for name in packages},
        "commit": _commit(),
    }


def code_digest() -> str:
    """SHA-256 of this package's source, in hex digits."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0{sha256(path)}\0".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Environment:
    """The part of ``environment`` that reports print."""

    python: str
    device: str
    processes: str
    packages: dict[str, str]
    commit: str | None = None


def read_environment(run: Path) -> Environment:
    """Read a run's ``environment.json``.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    return read_as(Environment, run / "environment.json", "the environment of a run")


def device_name() -> str:
    """The name of a GPU of this process, or of the CPU where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """The commit of the source tree, `-dirty` when it has changes; None outside a checkout of this project.

    A cluster job's copy of the tree (slurm/job.sh) has it in a file COMMIT.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        noted = root / "COMMIT"
        return noted.read_text(encoding="utf-8").strip() if noted.exists() else None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
