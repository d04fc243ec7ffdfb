"""Checkpoints, from which a run resumes, and exports, from which models are evaluated and sampled.

Tensors are stored as safetensors, the rest as JSON and YAML: no file read here can run code. The folder of a checkpoint
or export is complete or absent (``files.py``), and no file is read through a link that leaves it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distvae.config.load import dump_config, load_config
from distvae.config.schema import Config
from distvae.data.vocabulary import Vocabulary
from distvae.model.vae import TextVAE, model_of
from distvae.runs.attempts import last_begun
from distvae.runs.finding import EXPORT
from distvae.system.errors import UserError
from distvae.system.files import (
    Manifest,
    as_json,
    inside,
    read_as,
    read_manifest,
    reading,
    remove_folder,
    temporary,
    verify,
    whole_folder,
    writing,
)
from distvae.system.formats import FormatError, stamped
from distvae.system.settings import Count

Weights = dict[str, Tensor]

# Name of the link to the newest checkpoint, for users and for `resume=`.
LATEST = "latest"

# Files of every checkpoint.
_CHECKPOINT = ("model.safetensors", "ranks.safetensors", "config.yaml", "state.json")

_NAME = re.compile(r"start-(\d+)-step-(\d+)-epoch-(\d+)")

# State that policies and plateau rules keep from epoch to epoch.
_State = bool | int | float | str | None


@dataclass(frozen=True)
class RunState:
    """State of a run after an optimizer step, without its tensors."""

    stage: str
    epoch: Count  # finished epochs of the stage
    batches: Count  # trained batches of the next epoch; if these are all, validation is next
    seconds: Annotated[float, Field(ge=0, le=1e10)]  # spent on these batches
    step: Count  # optimizer steps of the run so far
    converged: bool  # the plateau rule has ended the stage
    plateau: dict[str, _State]
    policy: dict[str, _State]
    best: dict[str, _State] | None  # epoch and γ of the stage's best weights
    ended: list[dict[str, Any]]  # earlier stages
    data: str  # fingerprint of the sentences
    encoder_steps: Count = 0  # further steps of the next epoch, of the encoder alone
    turns: dict[str, _State] = field(default_factory=dict)  # which part of the model the next step moves
    warmed: Count = 10**9  # steps since the optimizer's moments were reset; older checkpoints are past any warm-up
    norm_total: Annotated[float, Field(ge=0)] = 0.0  # of the gradients of these batches
    norm_steps: Count = 0

    @property
    def recorded_step(self) -> int:
        """Optimizer steps at the end of the last epoch. Records up to there are kept."""
        return self.step - self.batches - self.encoder_steps


@dataclass(frozen=True)
class Checkpoint:
    """A run after an optimizer step."""

    weights: Weights
    best_weights: Weights | None  # of the current stage so far
    optimizer: Weights  # optimizer state: empty under SGD
    ranks: Weights  # state of each rank, such as its sums over the epoch: each [world_size, …]
    state: RunState
    config: Config
    world_size: int


class Saver:
    """Writes a run's checkpoints in a background thread, one at a time. Only the main process has one.

    Args:
        start: number of this attempt.
        keep: number of checkpoints to keep.
        check: raises an error once a later attempt has taken over the run.
    """

    def __init__(self, run: Path, start: int, keep: int, check: Callable[[], None]):
        self._run, self._start, self._keep, self._check = run, start, keep, check
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.write_seconds = 0.0  # so far

    def save(self, checkpoint: Checkpoint) -> None:
        """Wait for the previous checkpoint, then start to write this one. Its tensors must not change any more.

        Raises:
            UserError: the previous one could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, checkpoint)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            UserError: it could not be written.
        """
        if self._pending is not None:
            self._pending.result()

    @property
    def failed(self) -> bool:
        """Whether writing the last checkpoint has failed; ``wait`` raises the reason."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def close(self) -> None:
        """Finish the current write and end the thread."""
        self._thread.shutdown()

    def _write(self, checkpoint: Checkpoint) -> None:
        began = time.monotonic()
        with writing(self._run / "checkpoints"):
            save_checkpoint(self._run, checkpoint, self._start, self._keep, self._check)
        self.write_seconds += time.monotonic() - began


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, start: int, keep: int, check: Callable[[], None] = lambda: None
) -> Path:
    """Write ``run/checkpoints/start-…-step-…-epoch-…`` atomically, then remove older checkpoints.

    Args:
        start: number of the attempt that writes it.
        keep: number of checkpoints to keep.
        check: called before anything is written, and before the folder is renamed into place; may raise.
    """
    checkpoints, state = run / "checkpoints", checkpoint.state
    target = checkpoints / f"start-{start:04d}-step-{state.step:09d}-epoch-{state.epoch:04d}"
    with whole_folder(target, Manifest(start, state.step, checkpoint.world_size, {}), check) as folder:
        save_file(checkpoint.weights, folder / "model.safetensors")
        if checkpoint.best_weights is not None:
            save_file(checkpoint.best_weights, folder / "best.safetensors")
        if checkpoint.optimizer:
            save_file(checkpoint.optimizer, folder / "optimizer.safetensors")
        save_file(checkpoint.ranks, folder / "ranks.safetensors")
        (folder / "config.yaml").write_text(dump_config(checkpoint.config), encoding="utf-8")
        (folder / "state.json").write_text(as_json(stamped(asdict(state))), encoding="utf-8")
    pointer = temporary(checkpoints / LATEST)
    pointer.symlink_to(target.name)
    os.replace(pointer, checkpoints / LATEST)
    # Leave the checkpoints of a later attempt.
    for old in [folder for folder in list_checkpoints(run) if _order(folder)[0] <= start][:-keep]:
        remove_folder(old)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, oldest first.

    Those of a later attempt come after all of an earlier one, which may have kept writing while it seemed dead.
    """
    return sorted((path for path in (run / "checkpoints").glob("start-*") if _NAME.fullmatch(path.name)), key=_order)


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint, or None if there is none. Warn of each damaged one that it skips.

    Raises:
        FormatError: a newer version wrote it.
        UserError: there are checkpoints, and none is complete.
    """
    found = list_checkpoints(run)
    for folder in reversed(found):
        try:
            verify_checkpoint(folder)
        except FormatError:  # an older checkpoint would lose what the newer version trained
            raise
        except UserError as error:
            print(f"distvae: WARNING {error}; the run resumes from the checkpoint before it", file=sys.stderr)
        else:
            return folder
    if found:
        raise UserError(f"{run / 'checkpoints'}: no checkpoint is complete; name another run=FOLDER, or delete them")
    return None


def verify_checkpoint(folder: Path) -> None:
    """Check that a checkpoint is complete.

    Raises:
        UserError: a file is missing, damaged, or outside the folder.
    """
    verify(folder, *_CHECKPOINT)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a verified checkpoint.

    Raises:
        UserError: a file is missing or damaged.
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
    """Read a checkpoint's state without its tensors.

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
    """Write weights, config and vocabulary to ``folder``, replacing what was there.

    Args:
        start: number of the attempt that writes it.
        step: optimizer steps of the run so far.
        check: called before anything is written, and before the folder is renamed into place; may raise.
    """
    with whole_folder(folder, Manifest(start, step, 1, {}), check) as new:
        save_file(weights, new / "model.safetensors")
        (new / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        vocabulary.save(new / "vocabulary.json")


def remove_later_export(folder: Path, step: int) -> None:
    """Remove an export that training has written after ``step``, from which it now resumes."""
    with contextlib.suppress(UserError):  # none, or a damaged one, which no command reads
        if read_manifest(folder).step > step:
            remove_folder(folder)


@dataclass(frozen=True)
class Export:
    """A trained model, as stored in ``best/`` or ``pretrained/``."""

    folder: Path
    weights: Weights
    config: Config
    vocabulary: Vocabulary

    def model(self, device: torch.device | str = "cpu") -> TextVAE:
        """Return the model with these weights, in evaluation mode.

        Raises:
            UserError: weights, config and vocabulary do not match.
        """
        self.check()
        with _Undrawn():
            model = self._model()
        model.load_state_dict(self.weights)
        return model.to(device).eval()

    def check(self) -> None:
        """Check that weights, config and vocabulary match.

        Raises:
            UserError: they do not.
        """
        with _Undrawn(), torch.device("meta"):  # a config that does not match may need more memory than there is
            check_weights(self._model(), self.weights, self.folder)

    def _model(self) -> TextVAE:
        return model_of(self.config, len(self.vocabulary), self.vocabulary.pad, self.vocabulary.unknown)


class _Undrawn(TorchFunctionMode):
    """Leave new weights as they are in memory. torch would draw them, and for that on "meta" import torch._dynamo."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", None) == nn.init.__name__:
            return None  # which modules do not use
        return function(*args, **(kwargs or {}))


def check_weights(model: TextVAE, weights: Weights, where: Path) -> None:
    """Check that weights fit a model.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape or type, or not finite.
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
            raise UserError(f"{where}: the weights {name} are not all finite")


def load_export(path: str | Path, kind: str = "best") -> Export:
    """Read an export: ``path`` is its folder, or a run folder that contains it as ``kind``.

    Raises:
        FormatError: a newer version wrote it.
        UserError: there is none, or a file is missing, damaged, or outside the folder.
    """
    path = Path(path)
    folder = inside(path, kind) if (path / kind).is_dir() else path
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{path}: contains neither {kind}/model.safetensors nor model.safetensors; is it a run folder, and has the"
            " run come that far?"
        )
    manifest = verify(folder, *EXPORT)
    if kind == "best" and (path / "results.json").is_file() and manifest.start < last_begun(path):
        # A process that seemed dead may stall between the check of its lease and the write.
        raise UserError(
            f"{folder}: was written by attempt {manifest.start} at the run, which a later attempt has finished; write"
            f" it again by resume={path / 'checkpoints' / LATEST}"
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
    """Return attempt, step and epoch from a checkpoint's name."""
    return tuple(map(int, re.findall(r"\d+", folder.name)))


def _load_tensors(folder: Path, name: str) -> Weights:
    path = inside(folder, name)
    try:
        with reading(path):
            return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {error}; it is damaged: restore it from a copy") from None
