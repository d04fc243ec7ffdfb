"""DeepSpeed ZeRO: optimizer state (stage 1), gradients (2) and weights (3) are partitioned over the ranks."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distvae.config.schema import OptimizerConfig
from distvae.distributed.engines.base import (
    allocate_state,
    batch_norms,
    build_optimizer,
    copy_buffers,
    keep_statistics,
    parts_of,
)
from distvae.distributed.runtime import Runtime
from distvae.methods.lagging import Part
from distvae.model.vae import TextVAE


class Zero:
    """DeepSpeed's ZeRO optimizer, which steps on its own float32 copies of the weights.

    Each rank holds one partition of the copies. ``scatter`` is the only way in which changed weights reach them.
    """

    together = True

    module: nn.Module
    optimizer: torch.optim.Optimizer
    parts: Mapping[Part, list[Tensor]]
    carrier: nn.Parameter | None = None

    def __init__(self, runtime: Runtime, model: TextVAE, settings: OptimizerConfig, apart: bool = False):
        from deepspeed import utils, zero

        self._utils, self._gathered, self._device = utils, zero.GatheredParameters, runtime.device
        # Stages 1 and 2 keep the model whole on every rank, as views of one flat tensor.
        self._model, trained = model, copy.deepcopy(model) if runtime.zero_stage == 3 else model
        self._trained, self._shards_weights = trained, trained is not model
        self._parameters, self._norms = dict(trained.named_parameters()), batch_norms(trained)
        parts = parts_of(self._parameters, apart)
        optimizer = build_optimizer(parts, settings)
        self._deepspeed, prepared = runtime.accelerator.prepare(trained, optimizer)
        self.module, self._zero = self._deepspeed, prepared.optimizer
        self.optimizer = self._zero.optimizer
        # DeepSpeed partitions each parameter group on its own: flat tensors, of which stage 3 may have several a group.
        if runtime.zero_stage == 3:
            flat = self._zero.fp32_partitioned_groups_flat
            groups = [self._zero.sub_group_to_group_id[number] for number in range(len(flat))]
        else:
            flat = self._zero.single_partition_of_fp32_groups
            groups = list(range(len(flat)))
        self.parts = {
            part: [tensor for tensor, group in zip(flat, groups, strict=True) if group == number]
            for number, part in enumerate(parts)
        }
        allocate_state(self.optimizer, flat)
        if runtime.zero_stage != 3:
            self._zero._lazy_init_hp_params_optimizer_state()
        # Stage 3 has already made a step without a gradient, but with weight decay.
        self.scatter()

    def step(self) -> Tensor:
        """Return the norm only: DeepSpeed clips and steps within the backward of the last micro-batch."""
        norm = torch.as_tensor(
            torch.inf if self._zero.overflow else self._deepspeed.get_global_grad_norm(), device=self._device
        )
        keep_statistics(self._norms, norm)
        return norm

    @torch.no_grad()
    def gather(self) -> None:
        if self._shards_weights:
            with self._gathered(list(self._parameters.values())):
                for name, p in self._model.named_parameters():
                    p.copy_(self._parameters[name])
            copy_buffers(self._trained, self._model)

    @torch.no_grad()
    def scatter(self) -> None:
        if self._shards_weights:
            with self._gathered(list(self._parameters.values()), modifier_rank=0):
                for name, p in self._model.named_parameters():
                    self._parameters[name].copy_(p)
            copy_buffers(self._model, self._trained)
        self._zero.refresh_fp32_params()

    def moment(self, key: str, name: str) -> Tensor:
        value: Tensor = self._utils.safe_get_full_optimizer_state(self._parameters[name], key)
        return value

    def set_moment(self, key: str, name: str, value: Tensor) -> None:
        self._utils.safe_set_full_optimizer_state(self._parameters[name], value.to(self._device), key)

    def own_state(self) -> dict[str, Tensor]:
        return {}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        pass
