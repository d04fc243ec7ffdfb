"""The interface of an engine, and the optimizer code that engines share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from distvae.config.schema import AdamW, OptimizerConfig
from distvae.methods.lagging import Part
from distvae.model.batch_norm import BatchNorm

# AdamW's state: two tensors per weight, and the number of steps.
MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


class Engine(Protocol):
    """A model and its optimizer. Every rank calls the same methods in the same order."""

    module: nn.Module  # call it for a training forward: ``TextVAE.forward`` in the run's precision
    optimizer: torch.optim.Optimizer
    # The tensors that the optimizer updates, by the part of the model that they belong to; see ``parts_of``.
    parts: Mapping[Part, list[Tensor]]
    # Never trained. Ranks average its gradient with the others, so the loss can make it carry a value to all of them.
    # None if the engine has none.
    carrier: nn.Parameter | None

    @property
    def together(self) -> bool:
        """Whether all ranks hold the same model at this step, so that a checkpoint can store it."""

    def step(self) -> Tensor:
        """Clip and apply the accumulated gradient, then clear it. A gradient that is not finite is skipped.

        Returns:
            The global norm of the gradient before clipping, a scalar on the device; not finite if the step was skipped.
        """

    def gather(self) -> None:
        """Copy the trained weights into the trainer's model."""

    def scatter(self) -> None:
        """Copy the trainer's model into the trained weights."""

    def moment(self, key: str, name: str) -> Tensor:
        """Return the optimizer state ``key`` of the weight ``name``, unsharded."""

    def set_moment(self, key: str, name: str, value: Tensor) -> None:
        """Set the optimizer state ``key`` of the weight ``name`` from an unsharded tensor."""

    def own_state(self) -> dict[str, Tensor]:
        """Return the state that differs between ranks, under the same names on every rank."""

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load an ``own_state``. An empty one clears what earlier gradients left behind."""


def set_learning_rate(engine: Engine, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def set_moving(engine: Engine, part: Part) -> None:
    """Set which part of the model the next steps move. The other keeps its weights, moments and step counts.

    The gradient's norm, by which it is clipped, is that of both.
    """
    for group in engine.optimizer.param_groups:
        group["moves"] = part in ("all", group["part"])


def optimizer_state(engine: Engine, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the optimizer state of the named weights, the same on every rank and under every engine; {} for SGD."""
    state = engine.optimizer.state
    if not any(state.values()):
        return {}
    steps = {_step(part): state[tensors[0]][STEP].clone() for part, tensors in engine.parts.items()}
    return steps | {f"{key}.{name}": engine.moment(key, name) for key in MOMENTS for name in names}


def load_optimizer_state(engine: Engine, state: dict[str, Tensor]) -> None:
    """Load an ``optimizer_state``. An empty one resets the optimizer."""
    if not state:
        engine.load_own_state({})
    for kept in engine.optimizer.state.values():
        for value in kept.values():
            value.zero_()
    if not state:
        return
    for part, tensors in engine.parts.items():
        for tensor in tensors:
            engine.optimizer.state[tensor][STEP].copy_(state[_step(part)])
    for entry in state.keys() - {_step(part) for part in engine.parts}:
        key, name = entry.split(".", 1)
        engine.set_moment(key, name, state[entry])


def _step(part: Part) -> str:
    return STEP if part == "all" else f"{STEP}.{part}"


def parts_of(tensors: Mapping[str, Tensor], apart: bool) -> dict[Part, list[Tensor]]:
    """Return the tensors of a model by the part that moves on its own.

    Args:
        tensors: by the names of the weights.
        apart: whether encoder and decoder do; otherwise all tensors are one part.
    """
    if not apart:
        return {"all": list(tensors.values())}
    encoder = [value for name, value in tensors.items() if name.startswith("encoder.")]
    return {
        "encoder": encoder,
        "decoder": [value for name, value in tensors.items() if not name.startswith("encoder.")],
    }


def build_optimizer(parts: Mapping[Part, list[Tensor]], settings: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer of the parts of a model, a parameter group each; see ``set_moving``."""
    groups = [{"params": tensors, "part": part, "moves": True} for part, tensors in parts.items()]
    optimizer: torch.optim.Optimizer
    if isinstance(settings.algorithm, AdamW):
        decay = settings.algorithm.weight_decay
        optimizer = torch.optim.AdamW(groups, settings.learning_rate, weight_decay=decay, fused=True)
    else:
        # On a CPU the fused step also writes the clipped gradient, which doubles the memory traffic.
        on_gpu = next(iter(parts.values()))[0].device.type == "cuda"
        optimizer = torch.optim.SGD(groups, settings.learning_rate, fused=on_gpu, foreach=not on_gpu)
    optimizer.register_step_pre_hook(_hold)
    return optimizer


def _hold(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Drop the gradients of the groups that are not to move: optimizers leave out what has none."""
    for group in optimizer.param_groups:
        if not group["moves"]:
            for p in group["params"]:
                p.grad = None


def allocate_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Allocate AdamW's state, which AdamW would otherwise do at its first step."""
    if isinstance(optimizer, torch.optim.AdamW):
        for p in parameters:
            kept = {key: torch.zeros_like(p, requires_grad=False) for key in MOMENTS}
            optimizer.state[p] = {STEP: torch.zeros((), device=p.device)} | kept


@torch.no_grad()
def copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Copy the buffers of a module into those of its copy."""
    for name, buffer in target.named_buffers():
        buffer.copy_(source.get_buffer(name))


def batch_norms(module: nn.Module) -> list[BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


def keep_statistics(layers: Iterable[BatchNorm], norm: Tensor) -> None:
    """Add a step's statistics to the running ones, unless the norm of its gradient is not finite."""
    for layer in layers:
        layer.end_step(torch.isfinite(norm))


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient that the backward left."""
    if parameter.grad is None:
        raise RuntimeError("an engine's step needs a backward before it")
    return parameter.grad


class _Fused(torch.optim.Optimizer):
    """What torch's fused optimizers read during a step."""

    found_inf: Tensor
    grad_scale: Tensor


def clipped_step(optimizer: torch.optim.Optimizer, norm: Tensor, clip_norm: float | None) -> None:
    """Clip the gradient by its norm and step, or skip the step if the norm is not finite."""
    if optimizer.defaults["fused"]:
        fused = cast("_Fused", optimizer)
        fused.found_inf = (~torch.isfinite(norm)).float()
        if clip_norm is not None:
            fused.grad_scale = (norm / clip_norm).clamp(min=1.0)
        fused.step()
    elif torch.isfinite(norm):
        # SGD on a CPU: a smaller learning rate equals a smaller gradient, and reading the norm does not wait.
        rates = [group["lr"] for group in optimizer.param_groups]
        scale = 1.0 if clip_norm is None else max(float(norm) / clip_norm, 1.0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / scale
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    optimizer.zero_grad()
