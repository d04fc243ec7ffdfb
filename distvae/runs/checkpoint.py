"""What a run leaves on disk: checkpoints to go on from, and exports, all that evaluation and generation need.

Tensors are safetensors, the rest is JSON and YAML: no file read here can run code. A checkpoint or export is a folder
that is whole or not there (``files.py``), and no file of it is read from outside.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distvae.config.load import dump_config, load_config
from distvae.config.schema import Config
from distvae.data.vocabulary import Vocabulary
from distvae.model.vae import TextVAE, model_of
from distvae.runs.starts import last_begun
from distvae.system.errors import UserError
from distvae.system.files import (
    Manifest,
    as_json,
    inside,
    read_as,
    read_manifest,
    reading,
    temporary,
    verify,
    whole_folder,
    writing,
)
from distvae.system.settings import Count

Weights = dict[str, Tensor]

# The newest checkpoint, for a person and for `resume=`.
LATEST = "latest"

# What every checkpoint holds, and every export.
_CHECKPOINT = ("model.safetensors", "ranks.safetensors", "config.yaml", "state.json")
_EXPORT = ("model.safetensors", "config.yaml", "vocabulary.json")

_NAME = re.compile(r"start-(\d+)-step-(\d+)-epoch-(\d+)")


# What rules keep from epoch to epoch.
_State = bool | int | float | None


@dataclass(frozen=True)
class RunState:
    """Where a run stands after one of its optimizer steps, beside its weights."""

    stage: str
    epoch: Count  # epochs of the stage that have ended
    batches: Count  # of the next epoch, that have been trained; when it is all of them, their validation is next
    seconds: Annotated[float, Field(ge=0, le=1e10)]  # that these took
    step: Count  # optimizer steps of the run so far
    converged: bool  # the stage has ended by its own rule
    plateau: dict[str, _State]
    policy: dict[str, _State]
    best: dict[str, _State] | None  # what is known of the best weights of the stage
    ended: list[dict[str, Any]]  # the stages before
    data: str  # fingerprint of the sentences

    @property
    def recorded_step(self) -> int:
        """Optimizer steps when the last epoch ended: what was recorded up to there stands."""
        return self.step - self.batches


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its optimizer steps."""

    weights: Weights
    best_weights: Weights | None  # of this stage so far
    optimizer: Weights  # what the optimizer knows: nothing under SGD
    ranks: Weights  # what each rank alone keeps, such as what it has added up in the epoch: each [world_size, …]
    state: RunState
    config: Config
    world_size: int


class Saver:
    """Writes a run's checkpoints in a thread of its own, one at a time. Only the main process has one.

    Args:
        start: number of this start of the run.
        keep: how many checkpoints stay.
        check: raises an error once another start goes on with the run.
    """

    def __init__(self, run: Path, start: int, keep: int, check: Callable[[], None]):
        self._run, self._start, self._keep, self._check = run, start, keep, check
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self.write_seconds = 0.0  # so far

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint, whose tensors must no longer change; waits for the one before.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, checkpoint)

    def wait(self) -> None:
        """Wait until all is on disk.

        Raises:
            UserError: it could not be written.
        """
        if self._pending is not None:
            self._pending.result()

    @property
    def failed(self) -> bool:
        """Whether the last one is known not to have been written: ``wait`` says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def close(self) -> None:
        """Write what is being written, and end the thread."""
        self._thread.shutdown()

    def _write(self, checkpoint: Checkpoint) -> None:
        began = time.monotonic()
        with writing(self._run / "checkpoints"):
            save_checkpoint(self._run, checkpoint, self._start, self._keep, self._check)
        self.write_seconds += time.monotonic() - began


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, start: int, keep: int, check: Callable[[], None] = lambda: None
) -> Path:
    """Write ``run/checkpoints/start-…-step-…-epoch-…`` whole or not at all, then prune older ones.

    Args:
        start: number of the start of the run that writes it.
        keep: how many checkpoints stay.
        check: called before it is put in its place; may raise.
    """
    checkpoints, state = run / "checkpoints", checkpoint.state
    checkpoints.mkdir(parents=True, exist_ok=True)
    target = checkpoints / f"start-{start:04d}-step-{state.step:09d}-epoch-{state.epoch:04d}"
    with whole_folder(target, Manifest(start, state.step, checkpoint.world_size, {}), check) as folder:
        save_file(checkpoint.weights, folder / "model.safetensors")
        if checkpoint.best_weights is not None:
            save_file(checkpoint.best_weights, folder / "best.safetensors")
        if checkpoint.optimizer:
            save_file(checkpoint.optimizer, folder / "optimizer.safetensors")
        save_file(checkpoint.ranks, folder / "ranks.safetensors")
        (folder / "config.yaml").write_text(dump_config(checkpoint.config), encoding="utf-8")
        (folder / "state.json").write_text(as_json(asdict(state)), encoding="utf-8")
    pointer = temporary(checkpoints / LATEST)
    pointer.symlink_to(target.name)
    os.replace(pointer, checkpoints / LATEST)
    # Those of a later start are not this one's to remove.
    for old in [folder for folder in list_checkpoints(run) if _order(folder)[0] <= start][:-keep]:
        gone = temporary(old)
        os.rename(old, gone)  # at once: a reader finds it whole or not at all
        shutil.rmtree(gone)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first.

    Those of a later start come after all of an earlier one, which may have gone on writing where it was thought dead.
    """
    return sorted((path for path in (run / "checkpoints").glob("start-*") if _NAME.fullmatch(path.name)), key=_order)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole, or None where there is none at all. Says which ones it passes over.

    Raises:
        UserError: there are some, and none is whole.
    """
    found = list_checkpoints(run)
    for folder in reversed(found):
        try:
            verify_checkpoint(folder)
        except UserError as error:
            print(f"distvae: WARNING {error}; passed over for the checkpoint before", file=sys.stderr)
        else:
            return folder
    if found:
        raise UserError(f"{run / 'checkpoints'}: no checkpoint there is whole; name another run=FOLDER, or delete them")
    return None


def verify_checkpoint(folder: Path) -> None:
    """See that a checkpoint is whole.

    Raises:
        UserError: a file of it is missing, damaged, or lies elsewhere.
    """
    verify(folder, *_CHECKPOINT)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that was verified.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    manifest = read_manifest(folder)

    def tensors(name: str) -> Weights | None:
        return _load_tensors(folder, name) if name in manifest.files else None

    return Checkpoint(
        weights=_load_tensors(folder, "model.safetensors"),
        best_weights=tensors("best.safetensors"),
        optimizer=tensors("optimizer.safetensors") or {},
        ranks=_load_tensors(folder, "ranks.safetensors"),
        state=load_state(folder),
        config=load_config(inside(folder, "config.yaml"), whole=True),
        world_size=manifest.world_size,
    )


def load_state(folder: Path) -> RunState:
    """Read a checkpoint's state without its weights.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_as(RunState, folder / "state.json", "the state of a run")


def export(
    folder: Path,
    weights: Weights,
    config: Config,
    vocabulary: Vocabulary,
    start: int = 1,
    step: int = 0,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write ``folder`` with weights, config and vocabulary, in place of what was there.

    Args:
        start: number of the start of the run that writes it.
        step: optimizer steps of the run so far.
        check: called before it is put in its place; may raise.
    """
    with whole_folder(folder, Manifest(start, step, 1, {}), check) as new:
        save_file(weights, new / "model.safetensors")
        (new / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        vocabulary.save(new / "vocabulary.json")


@dataclass(frozen=True)
class Export:
    """A trained model as it lies in ``best/`` or ``pretrained/``."""

    folder: Path
    weights: Weights
    config: Config
    vocabulary: Vocabulary

    def model(self, device: torch.device | str = "cpu") -> TextVAE:
        """The model with these weights, in evaluation mode.

        Raises:
            UserError: weights, config and vocabulary do not belong together.
        """
        parts = self.config, len(self.vocabulary), self.vocabulary.pad, self.vocabulary.unknown
        with torch.device("meta"):  # sizes of a config that is not theirs may be more than there is memory for
            check_weights(model_of(*parts), self.weights, self.folder)
        model = model_of(*parts)
        model.load_state_dict(self.weights)
        return model.to(device).eval()


def check_weights(model: TextVAE, weights: Weights, where: Path) -> None:
    """See that weights are a model's.

    Raises:
        UserError: one is missing, too many, of another shape or type, or not finite.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        name = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
        raise UserError(
            f"{where}: the weights do not belong to their config and vocabulary: {name} is {found.get(name)}, and"
            f" should be {expected.get(name)}"
        )
    for name, value in model.state_dict().items():
        if weights[name].dtype != value.dtype:
            raise UserError(f"{where}: the weights {name} are {weights[name].dtype}, and should be {value.dtype}")
    _check_finite(weights, where)


def _check_finite(weights: Weights, where: Path) -> None:
    for name, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{where}: the weights {name} are not all finite, and nothing can be computed with them")


def load_export(path: str | Path, kind: str = "best") -> Export:
    """Read an export: ``path`` is its folder, or a run's folder that holds it as ``kind``.

    Raises:
        UserError: there is none, or a file of it is missing, damaged, or lies elsewhere.
    """
    path = Path(path)
    folder = inside(path, kind) if (path / kind).is_dir() else path
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{path}: holds neither {kind}/model.safetensors nor model.safetensors; is it a run's folder, and has it"
            " come that far?"
        )
    manifest = verify(folder, *_EXPORT)
    if kind == "best" and (path / "results.json").is_file() and manifest.start < last_begun(path):
        # By a process that was thought dead, and was held up between its look at who goes on and its write.
        raise UserError(
            f"{folder}: was written by start {manifest.start} of the run, which a later start has ended; have it"
            f" written again by resume={path / 'checkpoints' / LATEST}"
        )
    weights = _load_tensors(folder, "model.safetensors")
    _check_finite(weights, folder)
    return Export(
        folder=folder,
        weights=weights,
        config=load_config(inside(folder, "config.yaml"), whole=True),
        vocabulary=Vocabulary.load(inside(folder, "vocabulary.json")),
    )


def _order(folder: Path) -> tuple[int, ...]:
    """Start, step and epoch of a checkpoint, by its name."""
    return tuple(int(number) for number in _NAME.fullmatch(folder.name).groups())


def _load_tensors(folder: Path, name: str) -> Weights:
    path = inside(folder, name)
    try:
        with reading(path):
            return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {error}; it is damaged: restore it from a copy") from None
