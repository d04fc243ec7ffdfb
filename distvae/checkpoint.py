"""What a run leaves on disk: checkpoints to go on from, and exports, all that evaluation and generation need.

Tensors are safetensors, the rest is JSON and YAML: no file read here can run code. Each folder is written beside its
place and renamed into it, so that none is ever half there.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distvae.config import Config, dump_config, load_config
from distvae.errors import UserError
from distvae.model import TextVAE
from distvae.vocabulary import Vocabulary

Weights = dict[str, Tensor]

# Checkpoints kept: the last, and the one before in case the last is damaged.
KEEP = 2


@dataclass(frozen=True)
class RunState:
    """Where a run stands after one of its epochs, beside its weights."""

    stage: str
    epoch: int  # of the stage
    step: int  # optimizer steps of the run so far
    converged: bool  # the stage has ended by its own rule
    plateau: dict[str, Any]
    policy: dict[str, Any]
    best: dict[str, Any] | None  # what is known of the best weights of the stage
    ended: list[dict[str, Any]]  # the stages before
    data: str  # fingerprint of the sentences


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its epochs."""

    weights: Weights
    best_weights: Weights | None  # of this stage so far
    optimizer: Weights  # what the optimizer knows: nothing under SGD
    state: RunState


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write ``run/checkpoints/step-…`` whole or not at all, then prune older ones."""
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with _whole(checkpoints / f"step-{checkpoint.state.step:09d}") as folder:
        save_file(checkpoint.weights, folder / "model.safetensors")
        if checkpoint.best_weights is not None:
            save_file(checkpoint.best_weights, folder / "best.safetensors")
        if checkpoint.optimizer:
            save_file(checkpoint.optimizer, folder / "optimizer.safetensors")
        write_json(folder / "state.json", asdict(checkpoint.state))
    for old in _checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint's folder, or None."""
    return next(reversed(_checkpoints(run)), None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    best, optimizer = folder / "best.safetensors", folder / "optimizer.safetensors"
    return Checkpoint(
        weights=_load_tensors(folder / "model.safetensors"),
        best_weights=_load_tensors(best) if best.exists() else None,
        optimizer=_load_tensors(optimizer) if optimizer.exists() else {},
        state=load_state(folder),
    )


def load_state(folder: Path) -> RunState:
    """Read a checkpoint's state without its weights.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "state.json"
    try:
        return TypeAdapter(RunState).validate_python(read_json(path))
    except ValidationError:
        raise UserError(
            f"{path}: is not the state of a run; delete {folder} to go on from the checkpoint before"
        ) from None


def export(folder: Path, weights: Weights, config: Config, vocabulary: Vocabulary) -> None:
    """Write ``folder`` with weights, config and vocabulary, in place of what was there."""
    with _whole(folder) as new:
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
        model = TextVAE(self.config.model, len(self.vocabulary), self.vocabulary.pad, self.vocabulary.unknown)
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in self.weights.items()}
        if expected != found:
            name = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
            raise UserError(
                f"{self.folder}: the weights do not belong to their config and vocabulary: {name} is {found.get(name)},"
                f" and should be {expected.get(name)}"
            )
        model.load_state_dict(self.weights)
        return model.to(device).eval()


def load_export(path: str | Path, kind: str = "best") -> Export:
    """Read an export: ``path`` is its folder, or a run's folder that holds it as ``kind``.

    Raises:
        UserError: there is none, or a file of it is missing or damaged.
    """
    path = Path(path)
    folder = path / kind if (path / kind).is_dir() else path
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{path}: holds neither {kind}/model.safetensors nor model.safetensors; is it a run's folder, and has it"
            " come that far?"
        )
    return Export(
        folder=folder,
        weights=_load_tensors(folder / "model.safetensors"),
        config=load_config(folder / "config.yaml", whole=True),
        vocabulary=Vocabulary.load(folder / "vocabulary.json"),
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _load_tensors(path: Path) -> Weights:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``target`` when the block ends well, and vanishes when it does not."""
    new, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex}") for _ in range(2))
    new.mkdir(parents=True)
    try:
        yield new
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    finally:
        if old.exists() and not target.exists():  # cut short between the two
            os.rename(old, target)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
