"""What a person sees of a run: a progress bar, a line per epoch, metrics.jsonl, TensorBoard, status.json."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from distvae import __version__, starts
from distvae.errors import UserError, one_line
from distvae.evaluation import Scores
from distvae.files import flush, read_json, write_json, write_text


@dataclass(frozen=True)
class TrainEpoch:
    """One epoch's training, over all ranks: nats a sentence, with dropout on and while the weights moved."""

    re: float
    kl: float
    neg_elbo: float
    objective: float  # RE + γ·KL̃
    kl_per_dimension: tuple[float, ...]
    sentences: int
    skipped: int  # sentences beside these, of steps that were left out because they were not finite
    seconds: float

    @property
    def sentences_per_second(self) -> float:
        return self.sentences / self.seconds


@dataclass(frozen=True)
class Saving:
    """What checkpoints have cost since the record before."""

    count: int
    stall_seconds: float  # for which training stood still
    write_seconds: float  # in another thread


@dataclass(frozen=True)
class EpochRecord:
    """A line of metrics.jsonl."""

    stage: str
    epoch: int  # within the stage, from 1
    step: int  # optimizer steps of the run so far
    kl_weight: float  # γ, as the epoch ended
    learning_rate: float
    train: TrainEpoch
    valid: Scores
    valid_seconds: float
    verdict: str  # what the plateau rule made of it; "not counted" where it was not asked
    saving: Saving
    start: int  # number of the start of the run that trained the end of it

    def line(self) -> str:
        """The epoch in one line."""
        mark = {"improved": "best", "not counted": "", "wait": ""}.get(self.verdict, self.verdict)
        if self.train.skipped:
            mark = f"{self.train.skipped} sentences skipped, not finite  {mark}"
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
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    begun = starts.read_starts(run)
    return [row for row in rows if row["start"] >= starts.responsible(begun, row["step"])]


class Tracker:
    """Writes a run's records. Only the main process has one.

    Args:
        run: the run's folder.
        step: what was recorded up to this step stands; what comes after it, of a start that did not live to save it, is
            dropped.
    """

    def __init__(self, run: Path, step: int = 0):
        self._metrics = run / "metrics.jsonl"
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        write_text(self._metrics, "".join(_line(row) for row in kept))
        self._folder = run / "tensorboard"
        self._await_turn()
        self._board = SummaryWriter(self._folder, purge_step=step + 1)

    def epoch(self, record: EpochRecord) -> None:
        """Record an epoch in metrics.jsonl, in TensorBoard and on the terminal."""
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
        tqdm.write(record.line(), file=sys.stdout)
        sys.stdout.flush()

    def sentences(self, name: str, sentences: list[str], step: int) -> None:
        """Show sentences as text in TensorBoard."""
        self._board.add_text(name, "\n".join(f"- {sentence}" for sentence in sentences), step)

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


def write_status(run: Path, state: str, reason: str | None = None, start: int | None = None) -> None:
    """Say in ``run/status.json`` how the run stands: running, finished, interrupted or failed, and why.

    Launchers hide a program's exit code; this file does not.
    """
    run.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {"state": state, "reason": reason and one_line(reason), "time": now, "start": start}
    write_json(run / "status.json", content)


def end_status(run: Path, start: int) -> None:
    """See that a finished run's ``status.json`` says so: its process may have been killed between its last files."""
    try:
        said = read_json(run / "status.json")["state"]
    except (UserError, KeyError, TypeError):
        said = None
    if said != "finished":
        write_status(run, "finished", start=start)


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
    root = Path(__file__).resolve().parents[1]
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
