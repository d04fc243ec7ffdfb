"""What a person sees of a run: a progress bar, a line per epoch, metrics.jsonl, TensorBoard, status.json."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from distvae.checkpoint import write_json
from distvae.evaluation import Scores


@dataclass(frozen=True)
class TrainEpoch:
    """One epoch's training, over all ranks: nats a sentence, with dropout on and while the weights moved."""

    re: float
    kl: float
    neg_elbo: float
    objective: float  # RE + γ·KL̃
    kl_per_dimension: tuple[float, ...]
    sentences: int
    seconds: float

    @property
    def sentences_per_second(self) -> float:
        return self.sentences / self.seconds


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
    verdict: str  # what the plateau rule made of it; "not counted" where it was not asked

    def line(self) -> str:
        """The epoch in one line."""
        mark = {"improved": "best", "not counted": "", "wait": ""}.get(self.verdict, self.verdict)
        return (
            f"{self.stage:<8} {self.epoch:>3}  γ {self.kl_weight:<5.3f} lr {self.learning_rate:<7.3g}"
            f" train RE {self.train.re:6.2f} KL {self.train.kl:5.2f}  valid RE {self.valid.re.mean:6.2f}"
            f" KL {self.valid.kl.mean:5.2f} −ELBO {self.valid.neg_elbo.mean:6.2f}"
            f" MI {round(self.valid.mutual_information.mean, 2) + 0.0:4.2f} AU {self.valid.active_units:>2}"
            f"  {self.train.sentences_per_second:6.0f}/s  {mark}"
        ).rstrip()


class Tracker:
    """Writes a run's records. Only the main process has one.

    Args:
        run: the run's folder.
        step: where the run goes on from; records after it, of a start that did not live to save them, are dropped.
    """

    def __init__(self, run: Path, step: int = 0):
        self._metrics = run / "metrics.jsonl"
        if self._metrics.exists():
            lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            # A line without its end was cut off as it was written, after the step that a run can go on from.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            self._metrics.write_text("".join(kept), encoding="utf-8")
        self._board = SummaryWriter(run / "tensorboard", purge_step=step + 1)

    def epoch(self, record: EpochRecord) -> None:
        """Record an epoch in metrics.jsonl, in TensorBoard and on the terminal."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")
        step, train, valid = record.step, record.train, record.valid
        for name in ("re", "kl", "neg_elbo"):
            self._board.add_scalar(f"{name}/train", getattr(train, name), step)
            self._board.add_scalar(f"{name}/valid", getattr(valid, name).mean, step)
        self._board.add_scalar("objective/train", train.objective, step)
        self._board.add_scalar("control/kl_weight", record.kl_weight, step)
        self._board.add_scalar("control/learning_rate", record.learning_rate, step)
        self._board.add_scalar("latent/active_units", valid.active_units, step)
        self._board.add_scalar("latent/mutual_information", valid.mutual_information.mean, step)
        self._board.add_scalar("throughput/sentences_per_second", train.sentences_per_second, step)
        for d, kl in enumerate(valid.kl_per_dimension):
            self._board.add_scalar(f"latent_kl/{d:02d}", kl, step)
        self._board.flush()
        tqdm.write(record.line(), file=sys.stdout)
        sys.stdout.flush()

    def sentences(self, name: str, sentences: list[str], step: int) -> None:
        """Show sentences as text in TensorBoard."""
        self._board.add_text(name, "\n".join(f"- {sentence}" for sentence in sentences), step)
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class Progress:
    """A progress bar over sentences; silent where ``shown`` is False or stderr is no terminal."""

    def __init__(self, description: str, total: int, shown: bool):
        self.shown = shown and sys.stderr.isatty()
        self._bar = tqdm(
            desc=description, total=total, unit=" sentences", leave=False, disable=not self.shown, dynamic_ncols=True
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


def write_status(run: Path, state: str, reason: str | None = None) -> None:
    """Say in ``run/status.json`` how the run stands: running, finished, interrupted or failed, and why.

    Launchers hide a program's exit code; this file does not.
    """
    run.mkdir(parents=True, exist_ok=True)
    content = {"state": state, "reason": reason, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    write_json(run / "status.json", content)


def environment(processes: str) -> dict[str, Any]:
    """Versions, machine, processes and commit that a run was made with."""
    packages = ("distvae", "torch", "accelerate", "datasets", "numpy", "nltk")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processes": processes,
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
    }


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
