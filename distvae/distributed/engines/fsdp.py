"""FSDP2: weights, gradients and optimizer state are sharded along their first dimension, one slice per rank."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from distvae.config.schema import OptimizerConfig
from distvae.distributed.engines.base import (
    allocate_state,
    batch_norms,
    build_optimizer,
    clipped_step,
    copy_buffers,
    gradient_of,
    keep_statistics,
    parts_of,
)
from distvae.distributed.runtime import Runtime
from distvae.methods.lagging import Part
from distvae.model.vae import TextVAE


class FullySharded:
    """FSDP2 by torch's ``fully_shard``, on GPUs and CPUs alike; Accelerate supports FSDP on GPUs only.

    The model is one unit, because the decoder is entered through more than one method.
    """

    together = True
    carrier: nn.Parameter | None = None

    module: nn.Module
    parts: Mapping[Part, list[Tensor]]

    def __init__(self, runtime: Runtime, model: TextVAE, settings: OptimizerConfig, apart: bool = False):
        self._model, self._clip_norm = model, settings.clip_norm
        mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
        self.module = runtime.accelerator.prepare_model(copy.deepcopy(model), evaluation_mode=True)
        fully_shard(self.module, mesh=mesh, reshard_after_forward=runtime.fsdp_reshards)
        # The posterior returns two halves of a tensor as views; nothing writes to them.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        self._sharded = {name: cast("DTensor", p) for name, p in self.module.named_parameters()}
        # Fused optimizers do not support DTensor: they step on plain tensors that share its memory.
        self._slices = {name: nn.Parameter(p.to_local().detach()) for name, p in self._sharded.items()}
        self.parts = parts_of(self._slices, apart)
        self.optimizer = build_optimizer(self.parts, settings)
        allocate_state(self.optimizer, self._slices.values())
        self._norms = batch_norms(self.module)

    def step(self) -> Tensor:
        gradients = {name: cast("DTensor", gradient_of(p)) for name, p in self._sharded.items()}
        norm = _whole(cast("DTensor", get_total_norm(list(gradients.values()))))
        for name, gradient in gradients.items():
            self._slices[name].grad, self._sharded[name].grad = gradient.to_local(), None
        clipped_step(self.optimizer, norm, self._clip_norm)
        keep_statistics(self._norms, norm)
        return norm

    @torch.no_grad()
    def gather(self) -> None:
        for name, p in self._model.named_parameters():
            p.copy_(_whole(self._sharded[name]))
        copy_buffers(self.module, self._model)

    @torch.no_grad()
    def scatter(self) -> None:
        for name, p in self._model.named_parameters():
            self._slices[name].copy_(self._slice_of(name, p))
        copy_buffers(self._model, self.module)

    def moment(self, key: str, name: str) -> Tensor:
        like = self._sharded[name]
        local = self.optimizer.state[self._slices[name]][key]
        return _whole(
            DTensor.from_local(
                local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            )
        )

    def set_moment(self, key: str, name: str, value: Tensor) -> None:
        self.optimizer.state[self._slices[name]][key].copy_(self._slice_of(name, value))

    def own_state(self) -> dict[str, Tensor]:
        return {}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        pass

    def _slice_of(self, name: str, whole: Tensor) -> Tensor:
        like = self._sharded[name]
        cut = distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        return cut.to_local()


def _whole(sharded: DTensor) -> Tensor:
    """Return the whole tensor on every rank: one collective."""
    whole: Tensor = sharded.full_tensor()
    return whole
