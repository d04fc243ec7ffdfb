"""The state of a run between two steps: gathered for a checkpoint, and restored from one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from distvae.config.schema import Config
from distvae.distributed.engines.base import Engine, optimizer_state
from distvae.distributed.runtime import Runtime
from distvae.model.vae import TextVAE
from distvae.runs.checkpoints import Checkpoint, RunState, Weights
from distvae.runs.results import StageEnd
from distvae.system.errors import UserError
from distvae.training.stages import Best, EpochProgress, GradientNorms, Stage, StageProgress
from distvae.training.step import Sums


def copies(tensors: Weights) -> Weights:
    """Return copies in CPU memory, which training does not change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def gather_state(
    runtime: Runtime, engine: Engine, model: TextVAE, stage: Stage, epoch: EpochProgress, step: int
) -> tuple[Weights, Weights]:
    """Bring ``model`` up to date, and gather the optimizer's state and what differs between ranks.

    Collective. Returns both; the second, [world_size, …] each, is empty on every rank but the main one.
    """
    engine.gather()
    optimizer = optimizer_state(engine, dict(model.named_parameters()))
    own = {"sums": epoch.sums.row, "step": torch.tensor(step, device=runtime.device)}
    own |= stage.turns.own_state() | engine.own_state()
    gathered = {name: runtime.gather(value) for name, value in own.items()}
    ranks = {name: rows for name, rows in gathered.items() if rows is not None}
    if runtime.is_main and (ranks["step"] != step).any():
        raise RuntimeError("ranks save different steps")
    return optimizer, ranks


def run_state(
    stage: Stage, progress: StageProgress, epoch: EpochProgress, step: int, ended: list[StageEnd], data: str
) -> RunState:
    """Return what all ranks know.

    Args:
        data: the corpus's fingerprint.
    """
    best = progress.best
    return RunState(
        stage=stage.name,
        epoch=progress.epoch,
        batches=epoch.batches,
        seconds=epoch.seconds,
        step=step,
        warmed=progress.warmed,
        converged=progress.converged,
        plateau=progress.plateau.state_dict(),
        policy=stage.objective.state_dict(),
        best=None if best is None else {name: value for name, value in vars(best).items() if name != "weights"},
        ended=[asdict(end) for end in ended],
        data=data,
        encoder_steps=epoch.encoder_steps,
        turns=stage.turns.state_dict(),
        norm_total=epoch.norms.total,
        norm_steps=epoch.norms.steps,
    )


def restore(
    stage: Stage, progress: StageProgress, resumed: Checkpoint, config: Config, runtime: Runtime, engine: Engine
) -> EpochProgress:
    """Restore a stage from a checkpoint. Returns the epoch in progress.

    Raises:
        UserError: the checkpoint is of another kind.
    """
    state = resumed.state
    progress.epoch, progress.converged, progress.warmed = state.epoch, state.converged, state.warmed
    try:
        progress.plateau.load_state_dict(state.plateau)
        # The ratio is 1, unless the caller allows to resume with another rate.
        progress.plateau.learning_rate *= config.optimizer.learning_rate / resumed.config.optimizer.learning_rate
        stage.objective.load_state_dict(state.policy)
        stage.turns.load_state_dict(state.turns)
        if resumed.best_weights is not None:
            best: dict[str, Any] = {**(state.best or {})}
            progress.best = Best(resumed.best_weights, **best)
    except (KeyError, TypeError):
        raise UserError(f"{config.run}: a checkpoint's state.json is not the state of a run") from None
    sums = Sums(config.model.latent_size, runtime.device)
    for name, own in ({"sums": sums.row} | stage.turns.own_state()).items():
        rows = resumed.ranks.get(name)
        if rows is None or rows.shape != (resumed.world_size, *own.shape):
            raise UserError(f"{config.run}: a checkpoint's ranks.safetensors is of another model")
        if resumed.world_size == runtime.world_size:
            own.copy_(rows[runtime.rank])
        elif runtime.is_main:
            own.copy_(rows.sum(dim=0))
    if resumed.world_size == runtime.world_size:
        engine.load_own_state({name: kept[runtime.rank] for name, kept in resumed.ranks.items()})
    norms = GradientNorms(state.norm_total, state.norm_steps)
    return EpochProgress(sums, state.batches, state.encoder_steps, state.seconds, norms)
