"""Records of a run: metrics.jsonl, TensorBoard, a line per epoch and a progress bar."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from distvae.evaluation.liveness import Latent, LatentState
from distvae.evaluation.scores import LARGEST_SCORE, Scores, sums_agree
from distvae.runs import attempts
from distvae.system.errors import UserError
from distvae.system.files import check_as, damaged, flush, parse_json, read_text, write_text
from distvae.system.markdown import escaped
from distvae.system.settings import Count

# Warn after this many consecutive epochs without a live latent. The first epochs of a stage may well have none.
_LASTING = 3

# Duration of one piece of work; no clock measures longer ones.
Seconds = Annotated[float, Field(ge=0, le=1e10)]


@dataclass(frozen=True)
class TrainEpoch:
    """Training scores of an epoch over all ranks, in nats per sentence, with dropout on and changing weights."""

    re: float
    kl: float
    neg_elbo: float
    objective: float  # RE + γ·KL̃
    kl_per_dimension: tuple[float, ...]
    sentences: Annotated[int, Field(ge=1)]
    skipped: Count  # further sentences, in steps that were left out because they were not finite
    seconds: Annotated[float, Field(gt=0, le=1e10)]

    @property
    def sentences_per_second(self) -> float:
        return self.sentences / self.seconds


@dataclass(frozen=True)
class Saving:
    """Cost of the checkpoints since the last record."""

    count: Count
    stall_seconds: Seconds  # while training waited
    write_seconds: Seconds  # in the background thread


@dataclass(frozen=True)
class EpochRecord:
    """A line of metrics.jsonl."""

    stage: Literal["pretrain", "train"]
    epoch: Annotated[int, Field(ge=1)]  # within the stage, from 1
    step: Count  # optimizer steps of the run so far
    kl_weight: Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)]  # γ at the end of the epoch
    learning_rate: Annotated[float, Field(ge=0, le=LARGEST_SCORE)]
    train: TrainEpoch
    valid: Scores
    valid_seconds: Seconds
    # Verdict of the plateau rule; "not counted" where the epoch does not count.
    verdict: Literal["improved", "wait", "decay", "stop", "not counted"]
    saving: Saving
    start: int  # number of the attempt that trained the end of the epoch
    latent: Latent | None = None  # on the validation sentences; None: too few to judge

    def line(self) -> str:
        """Return the epoch as one line of text."""
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
    """Return the valid records in order, as plain values.

    An attempt that was thought dead may have kept writing: its records after the step at which a later one took over
    are left out, and so is a truncated last line.

    Raises:
        UserError: the file cannot be read, or a line is not a record.
    """
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return []
    lines = read_text(path).split("\n")[:-1]
    rows = [_row(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
    begun = attempts.read_attempts(run)
    counting = [row for row in rows if row["start"] >= attempts.responsible(begun, row["step"])]
    for before, row in itertools.pairwise(counting):
        follows = before["epoch"] + 1 if row["stage"] == before["stage"] else 1
        if row["step"] <= before["step"] or row["epoch"] != follows:
            one, other = (f"{r['stage']} epoch {r['epoch']} at step {r['step']}" for r in (before, row))
            raise damaged(path, "a run's records", f"{other} comes after {one}")
    return counting


def _row(line: str, source: str) -> dict[str, Any]:
    """Return a line as plain values, after checking that it is an ``EpochRecord`` whose numbers agree."""
    row = parse_json(line, source)
    if isinstance(row, dict):
        row.setdefault("valid_seconds", 0.0)  # the first version did not record it
    record = check_as(EpochRecord, row, source, _RECORD)
    train = record.train
    why = record.valid.contradiction
    if not sums_agree(train.neg_elbo, train.re + train.kl):
        why = why or f"neg_elbo of train is {train.neg_elbo}, and re + kl is {train.re + train.kl}"
    if not sums_agree(train.kl, sum(train.kl_per_dimension)):
        why = why or f"kl of train is {train.kl}, and its dimensions add up to {sum(train.kl_per_dimension)}"
    if why is not None:
        raise damaged(source, _RECORD, why)
    return dict(row)


_RECORD = "a record of an epoch"


class Tracker:
    """Writes a run's records. Only the main process has one.

    Args:
        run: the run folder.
        step: keep the records up to this step; drop later ones, which belong to an attempt that ended before it saved.
    """

    def __init__(self, run: Path, step: int = 0):
        self._name, self._metrics = run.name, run / "metrics.jsonl"
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        write_text(self._metrics, "".join(_line(row) for row in kept))
        self._latent: LatentState | None = None  # in the last record
        self._lifeless = 0  # consecutive epochs of the stage without a live latent
        for row in kept:
            self._follow_latent(row["epoch"], (row.get("latent") or {}).get("state"))
        self._folder = run / "tensorboard"
        self._await_turn()
        self._board = SummaryWriter(self._folder, purge_step=step + 1)

    def epoch(self, record: EpochRecord) -> bool:
        """Record an epoch in metrics.jsonl, in TensorBoard and on the terminal.

        Returns:
            Whether the state of the latent has changed since the epoch before.
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
        lines, former = [record.line()], self._latent
        state = None if record.latent is None else record.latent.state
        if state is not None:
            self._board.add_scalar("latent/alive", state == "alive", step)
        self._follow_latent(record.epoch, state)
        if record.latent is not None and self._lifeless == _LASTING:
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
        # TensorBoard renders the text as Markdown.
        self._board.add_text(name, "\n".join(f"- {escaped(sentence)}" for sentence in sentences), step)

    def flush(self) -> None:
        """Flush all records to disk. A checkpoint written after this resumes behind them."""
        self._board.flush()
        for path in self._events()[-1:]:
            flush(path)

    def close(self) -> None:
        self._board.close()

    def _events(self) -> list[Path]:
        return sorted(self._folder.glob("events.out.tfevents.*"))

    def _await_turn(self) -> None:
        """Wait until the name of a new events file sorts after the existing ones.

        TensorBoard reads files in the order of their names, which begin with the time in seconds. A clock that is more
        than 5 seconds behind is not waited for.
        """
        seconds = [int(word) for path in self._events() if (word := path.name.split(".")[3]).isdecimal()]
        end = time.monotonic() + 5
        while seconds and int(time.time()) <= max(seconds) and time.monotonic() < end:
            time.sleep(0.02)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


class Progress:
    """A progress bar over sentences. It is silent if ``shown`` is False or stderr is not a terminal."""

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
        """Add finished sentences, and show values beside the bar."""
        if values:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
        self._bar.update(sentences)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def last_latent(run: Path) -> Latent | None:
    """Return the latent of a run's last record; None if there is none."""
    with contextlib.suppress(UserError):
        rows = read_metrics(run)
        if rows and rows[-1].get("latent") is not None:
            return Latent(**rows[-1]["latent"])
    return None
