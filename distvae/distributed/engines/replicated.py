"""A single process, DDP with optional gradient compression, and local SGD: every rank holds the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from distvae.config.communication import BF16, CommunicationConfig, PowerSGD
from distvae.config.schema import OptimizerConfig
from distvae.distributed.engines.base import (
    allocate_state,
    batch_norms,
    build_optimizer,
    clipped_step,
    gradient_of,
    keep_statistics,
    parts_of,
)
from distvae.distributed.runtime import Runtime
from distvae.methods.lagging import Part
from distvae.model.draws import Noise
from distvae.model.vae import TextVAE

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket


class Replicated:
    """The engine of a single process, DDP and local SGD."""

    module: nn.Module
    parts: Mapping[Part, list[Tensor]]
    carrier: nn.Parameter | None = None

    def __init__(
        self,
        runtime: Runtime,
        model: TextVAE,
        settings: OptimizerConfig,
        carries: bool = False,
        apart: bool = False,
    ):
        self._model, self._clip_norm = model, settings.clip_norm
        self._parameters, self._norms = dict(model.named_parameters()), batch_norms(model)
        self._device = runtime.device
        self._average_every = runtime.communication.local_sgd_steps if runtime.world_size > 1 else None
        self._steps_apart = 0
        reduces = runtime.world_size > 1 and self._average_every is None
        trained: nn.Module = model
        # Compressed to bf16, a value would lose most of its digits.
        if carries and reduces and not isinstance(runtime.communication.compression, BF16):
            trained = _Carrying(model)
            self.carrier = trained.carrier
        # Local SGD reduces no gradients, so it does not wrap the model in DDP.
        self.module = runtime.accelerator.prepare_model(
            trained,
            device_placement=True,  # given, because Accelerate would import torch.distributed.tensor to decide it
            evaluation_mode=self._average_every is not None,
        )
        self._power: _PowerSGD | None = None
        if isinstance(self.module, DistributedDataParallel):
            self._power = _compress(self.module, runtime.communication, apart)
        self.parts = parts_of(self._parameters, apart)
        self.optimizer = build_optimizer(self.parts, settings)
        allocate_state(self.optimizer, self._parameters.values())
        if reduces:
            self._settle_buckets(model)

    def _settle_buckets(self, model: TextVAE) -> None:
        """Make DDP lay out its buckets before the first step.

        DDP lays them out after its first backward, in the order in which the gradients arrived, and with three or more
        ranks the order of summation depends on a value's position in its bucket. After a backward of zeros a resumed
        run sums in the same order as an uninterrupted one.
        """
        device = next(model.parameters()).device
        tokens, lengths = torch.zeros(1, 2, dtype=torch.long, device=device), torch.full((1,), 2, device=device)
        noise = Noise(torch.zeros(1, model.latent_size, device=device))
        re, mean, log_variance = self.module(tokens, lengths, noise)
        total = re.sum() + mean.sum() + log_variance.sum()
        if self.carrier is not None:
            total = total + self.carrier[0]
        (0 * total).backward()
        if self.carrier is not None:
            self.carrier.grad = None
        self.optimizer.zero_grad()
        if self._power is not None:
            self._power.iter = 0  # do not count this backward

    def step(self) -> Tensor:
        for p in self._parameters.values():
            gradient = gradient_of(p)
            if gradient.is_sparse:
                p.grad = gradient.coalesce()  # sum a word's gradients before clipping, as in a dense gradient
        norm = _norm([gradient_of(p) for p in self._parameters.values()])
        if self._power is not None:
            self._power.hold([p for g in self.optimizer.param_groups if not g["moves"] for p in g["params"]])
        clipped_step(self.optimizer, norm, self._clip_norm)
        keep_statistics(self._norms, norm)
        if self._average_every is not None:
            self._steps_apart += 1
            if self._steps_apart == self._average_every:
                self.gather()
        return norm

    def gather(self) -> None:
        """Average the ranks' models under local SGD. The trainer's model is the trained one, so nothing is copied."""
        if self._steps_apart:
            self._average()
            self._steps_apart = 0

    @torch.no_grad()
    def _average(self) -> None:
        """Average weights and buffers in one collective, in place: cuDNN needs an LSTM's weights where it put them."""
        weights = list(self._model.state_dict().values())
        mean = torch.cat([p.flatten() for p in weights]).div_(dist.get_world_size())
        dist.all_reduce(mean)
        parts = torch.split(mean, [p.numel() for p in weights])
        torch._foreach_copy_(weights, [part.view_as(p) for part, p in zip(parts, weights, strict=True)])

    @property
    def together(self) -> bool:
        return self._steps_apart == 0

    def scatter(self) -> None:
        pass

    def moment(self, key: str, name: str) -> Tensor:
        return self._state_of(name)[key]

    def set_moment(self, key: str, name: str, value: Tensor) -> None:
        self.moment(key, name).copy_(value)

    def own_state(self) -> dict[str, Tensor]:
        """Return PowerSGD's step count, error feedback and factors; under local SGD the optimizer's state, whose steps
        differ between ranks that skip different ones."""
        state = {}
        if self._power is not None:
            state["powersgd.iter"] = torch.tensor(self._power.iter, device=self._device)
            for name, kept in _power_memory(self._power).items():
                if kept:
                    state[f"powersgd.{name}"] = kept[0]  # there is one bucket
        if self._average_every is not None:
            state |= {f"{key}.{name}": p for name in self._parameters for key, p in self._state_of(name).items()}
        return state

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        if self._power is not None:
            # The error feedback of other weights does not belong to the next gradient.
            self._power.error_dict.clear()
            self._power.iter = int(state.get("powersgd.iter", self._power.iter))
            for name, kept in _power_memory(self._power).items():
                if f"powersgd.{name}" in state:
                    kept[0] = state[f"powersgd.{name}"].to(self._device, copy=True)
        if self._average_every is not None:
            for name in self._parameters:
                for key, value in self._state_of(name).items():
                    if f"{key}.{name}" in state:
                        value.copy_(state[f"{key}.{name}"])

    def _state_of(self, name: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.optimizer.state[self._parameters[name]]
        return state


class _Carrying(nn.Module):
    """A model, and the engine's ``carrier``."""

    def __init__(self, model: TextVAE):
        super().__init__()
        self.model = model
        # On the device and of the dtype of the other weights, whose buckets it then shares. PowerSGD takes no scalars.
        self.carrier = nn.Parameter(torch.zeros_like(next(model.parameters()).flatten()[:1]))

    def forward(self, *inputs: Tensor | Noise | int | None) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = self.model(*inputs)
        return outputs


class _PowerSGD(powerSGD_hook.PowerSGDState):
    """PowerSGD's state, and the error feedback from before the last gradient, which a part that does not move keeps."""

    def __init__(self, compression: PowerSGD, apart: bool):
        super().__init__(
            None,
            matrix_approximation_rank=compression.powersgd_rank,
            start_powerSGD_iter=compression.powersgd_start,
        )
        self._apart, self._places = apart, [(torch.empty(0), 0)]
        self._before: Tensor | None = None

    def hook(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Compress the gradients in DDP's only bucket."""
        if self._apart:
            start = int(bucket.buffer().storage_offset())
            offsets = [int(gradient.storage_offset()) - start for gradient in bucket.gradients()]
            self._places = list(zip(bucket.parameters(), offsets, strict=True))
            self._before = self.error_dict[0].clone() if self.error_dict else None
        future: torch.futures.Future[Tensor] = powerSGD_hook.powerSGD_hook(self, bucket)
        return future

    def hold(self, still: list[Tensor]) -> None:
        """Restore the error of weights that do not move, because their gradient is dropped."""
        pointers = {p.data_ptr() for p in still}
        for p, offset in self._places if self.error_dict else ():
            if p.data_ptr() in pointers:
                rows = slice(offset, offset + p.numel())
                self.error_dict[0][rows] = 0 if self._before is None else self._before[rows]


def _power_memory(power: powerSGD_hook.PowerSGDState) -> dict[str, dict[int, Tensor]]:
    return {"error": power.error_dict, "p": power.p_memory_dict, "q": power.q_memory_dict}


def _compress(module: DistributedDataParallel, communication: CommunicationConfig, apart: bool) -> _PowerSGD | None:
    """Register the compression hook that the config asks for. Returns PowerSGD's state."""
    compression = communication.compression
    if isinstance(compression, BF16):
        # Wrapped: torch recognises its hook by name and rejects it over gloo, which does sum bf16 correctly.
        module.register_comm_hook(None, lambda state, bucket: default_hooks.bf16_compress_hook(state, bucket))
    elif isinstance(compression, PowerSGD):
        memory = _PowerSGD(compression, apart)
        module.register_comm_hook(None, lambda state, bucket: memory.hook(bucket))
        return memory
    return None


def _norm(gradients: list[Tensor]) -> Tensor:
    """Return the global norm of gradients. A sparse gradient holds rows for the words of the batch only."""
    values = [g.values() if g.is_sparse else g for g in gradients]
    if values[0].device.type == "cpu":
        # A dot product takes half the time of torch's norm.
        return torch.stack([torch.dot(v.flatten(), v.flatten()) for v in values]).sum().sqrt()
    return get_total_norm(values)
