"""Who carries a training step: data parallelism, local SGD, DeepSpeed's ZeRO, FSDP2. The trainer sees one ``Engine``.

All train one objective in one precision: weights, sums of gradients and updates are float32, and bf16 is autocast in
the forward. So an engine changes where tensors lie and what is sent, and not what is computed. Where it spreads the
weights over the ranks, the trainer's model is a replica beside them, which ``gather`` and ``scatter`` keep in step.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from distvae.config.schema import CommunicationConfig, OptimizerConfig
from distvae.distributed.runtime import Runtime
from distvae.model.draws import Noise
from distvae.model.vae import TextVAE
from distvae.system.errors import UserError

# What AdamW keeps: two tensors for each weight, and the number of steps it has made.
MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


class Engine(Protocol):
    """A model and its optimizer in the hands of one way to train them. Every rank calls the same methods in step."""

    module: nn.Module  # what a training forward calls: ``TextVAE.forward`` in the run's precision
    optimizer: torch.optim.Optimizer
    together: bool  # whether all ranks train one model just now, so that a checkpoint can hold it

    def step(self) -> Tensor:
        """Clip and apply the gradient since the last step, and forget it; leave it out when it is not finite.

        Returns:
            The gradient's global norm before clipping, on the device; not finite where it was left out.
        """

    def gather(self) -> None:
        """Bring the trainer's model up to date with the weights that are trained."""

    def scatter(self) -> None:
        """Train on from the trainer's model: its weights go wherever weights are kept."""

    def moment(self, key: str, name: str) -> Tensor:
        """What the optimizer keeps under ``key`` for the weight ``name``, whole."""

    def set_moment(self, key: str, name: str, value: Tensor) -> None: ...

    def own_state(self) -> dict[str, Tensor]:
        """What this rank alone keeps from step to step, beside what all do: the same names on every rank."""

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Take an ``own_state``; an empty one forgets what former gradients left behind."""


def make_engine(
    runtime: Runtime, model: TextVAE, settings: OptimizerConfig, embedding_gradients: str = "auto"
) -> Engine:
    """The engine that the launcher asked for. The model holds the same weights on every rank.

    Args:
        embedding_gradients: ``speed.embedding_gradients``.

    Raises:
        UserError: it asks for rows where these would not give the same steps.
    """
    rows = settings.name == "sgd" and runtime.device.type == "cpu" and runtime.engine == "alone"
    if embedding_gradients == "rows" and not rows:
        raise UserError(
            "speed.embedding_gradients=rows needs optimizer.name=sgd and a process alone on a CPU, not"
            f" {settings.name} and {runtime.processes} on {runtime.device.type}; auto takes rows where it can"
        )
    for part in (model.encoder, model.decoder):
        part.embedding.sparse = rows and embedding_gradients != "dense"
    if runtime.zero_stage is not None:
        return Zero(runtime, model, settings)
    if runtime.fsdp:
        return FullySharded(runtime, model, settings)
    return Replicated(runtime, model, settings)


def set_learning_rate(engine: Engine, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def optimizer_state(engine: Engine, names: Iterable[str]) -> dict[str, Tensor]:
    """What the optimizer knows of the named weights: the same under every engine and on every rank; of SGD, nothing."""
    kept = next((kept for kept in engine.optimizer.state.values() if kept), None)
    if kept is None:
        return {}
    return {STEP: kept[STEP].clone()} | {f"{key}.{name}": engine.moment(key, name) for key in MOMENTS for name in names}


def load_optimizer_state(engine: Engine, state: dict[str, Tensor]) -> None:
    """Take an ``optimizer_state``; an empty one forgets what is known of former weights and their gradients."""
    if not state:
        engine.load_own_state({})
    for kept in engine.optimizer.state.values():
        for value in kept.values():
            value.zero_()
        if state:
            kept[STEP].copy_(state[STEP])
    for entry in state.keys() - {STEP}:
        key, name = entry.split(".", 1)
        engine.set_moment(key, name, state[entry])


class Replicated:
    """Every rank holds the whole model: a process alone, DDP with its compressions, local SGD."""

    def __init__(self, runtime: Runtime, model: TextVAE, settings: OptimizerConfig):
        self._parameters, self._clip_norm = dict(model.named_parameters()), settings.clip_norm
        self._average_every = runtime.communication.local_sgd_steps if runtime.world_size > 1 else None
        self._steps_apart = 0
        # Under local SGD no gradient is reduced, so the model is not wrapped for that.
        self.module = runtime.accelerator.prepare_model(model, evaluation_mode=self._average_every is not None)
        self._power: powerSGD_hook.PowerSGDState | None = None
        if runtime.world_size > 1:
            self._power = _compress(self.module, runtime.communication)
        self.optimizer = _optimizer(self._parameters.values(), settings)
        _begin(self.optimizer, self._parameters.values())
        if runtime.world_size > 1 and self._average_every is None:
            self._settle_buckets(model)

    def _settle_buckets(self, model: TextVAE) -> None:
        """Have DDP lay out its buckets before the first step.

        It does so after its first backward, in the order in which gradients came, and three ranks or more add a value
        in an order that depends on its place in a bucket. With a backward of zeros before, a run that goes on adds as
        one does that was never interrupted.
        """
        device = next(model.parameters()).device
        tokens, lengths = torch.zeros(1, 2, dtype=torch.long, device=device), torch.full((1,), 2, device=device)
        noise = Noise(torch.zeros(1, model.latent_size, device=device))
        re, mean, log_variance = self.module(tokens, lengths, noise)
        (0 * (re.sum() + mean.sum() + log_variance.sum())).backward()
        self.optimizer.zero_grad()
        if self._power is not None:
            self._power.iter = 0  # this was no step

    def step(self) -> Tensor:
        for p in self._parameters.values():
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()  # a word's gradients are summed before they are taken off, as dense ones are
        norm = _norm([p.grad for p in self._parameters.values()])
        _clipped_step(self.optimizer, norm, self._clip_norm)
        if self._average_every is not None:
            self._steps_apart += 1
            if self._steps_apart == self._average_every:
                self.gather()
        return norm

    def gather(self) -> None:
        """The trainer's model is the one that is trained; under local SGD the ranks' models become their mean."""
        if self._steps_apart:
            self._average()
            self._steps_apart = 0

    @torch.no_grad()
    def _average(self) -> None:
        """As one tensor: one collective. In place, for cuDNN wants an LSTM's weights where it has laid them out."""
        weights = list(self._parameters.values())
        mean = torch.cat([p.flatten() for p in weights]).div_(dist.get_world_size())
        dist.all_reduce(mean)
        parts = mean.split([p.numel() for p in weights])
        torch._foreach_copy_(weights, [part.view_as(p) for part, p in zip(parts, weights, strict=True)])

    @property
    def together(self) -> bool:
        return self._steps_apart == 0

    def scatter(self) -> None:
        pass

    def moment(self, key: str, name: str) -> Tensor:
        return self.optimizer.state[self._parameters[name]][key]

    def set_moment(self, key: str, name: str, value: Tensor) -> None:
        self.moment(key, name).copy_(value)

    def own_state(self) -> dict[str, Tensor]:
        """PowerSGD's count of steps, what its factors left out, and the factors; local SGD's moments."""
        state = {}
        if self._power is not None:
            state["powersgd.iter"] = torch.tensor(self._power.iter, device=self.module.device)
            for name, kept in self._power_memory().items():
                if kept:
                    state[f"powersgd.{name}"] = kept[0]  # there is one bucket
        if self._average_every is not None:
            state |= {f"{key}.{name}": p for name in self._parameters for key, p in self._kept(name).items()}
        return state

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        if self._power is not None:
            # What was left out of the gradients of other weights is no part of the next one.
            self._power.error_dict.clear()
            self._power.iter = int(state.get("powersgd.iter", self._power.iter))
            for name, kept in self._power_memory().items():
                if f"powersgd.{name}" in state:
                    kept[0] = state[f"powersgd.{name}"].to(self.module.device, copy=True)
        if self._average_every is not None:
            for name in self._parameters:
                for key, value in self._kept(name).items():
                    if f"{key}.{name}" in state:
                        value.copy_(state[f"{key}.{name}"])

    def _power_memory(self) -> dict[str, dict[int, Tensor]]:
        return {
            "error": self._power.error_dict, "p": self._power.p_memory_dict, "q": self._power.q_memory_dict,
        }  # fmt: skip

    def _kept(self, name: str) -> dict[str, Tensor]:
        return {key: value for key, value in self.optimizer.state[self._parameters[name]].items() if key in MOMENTS}


class FullySharded:
    """FSDP2: weights, gradients and what the optimizer keeps are cut along their first dimension, a slice each rank.

    By torch's ``fully_shard`` itself: Accelerate carries FSDP on GPUs alone, and so there is one way for GPUs and CPUs.
    The model is one unit, for its decoder is entered by more than one method.
    """

    together = True

    def __init__(self, runtime: Runtime, model: TextVAE, settings: OptimizerConfig):
        self._model, self._clip_norm = model, settings.clip_norm
        mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
        self.module = runtime.accelerator.prepare_model(copy.deepcopy(model), evaluation_mode=True)
        fully_shard(self.module, mesh=mesh, reshard_after_forward=runtime.fsdp_reshards)
        # The posterior's two halves are views, which nothing writes to.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        self._sharded: dict[str, DTensor] = dict(self.module.named_parameters())
        # Fused optimizers know no DTensor: they get this rank's slices as plain tensors over the same memory.
        self._slices = {name: nn.Parameter(p.to_local().detach()) for name, p in self._sharded.items()}
        self.optimizer = _optimizer(self._slices.values(), settings)
        _begin(self.optimizer, self._slices.values())

    def step(self) -> Tensor:
        norm = get_total_norm([p.grad for p in self._sharded.values()]).full_tensor()
        for name, p in self._sharded.items():
            self._slices[name].grad, p.grad = p.grad.to_local(), None
        _clipped_step(self.optimizer, norm, self._clip_norm)
        return norm

    @torch.no_grad()
    def gather(self) -> None:
        for name, p in self._model.named_parameters():
            p.copy_(self._sharded[name].full_tensor())

    @torch.no_grad()
    def scatter(self) -> None:
        for name, p in self._model.named_parameters():
            self._slices[name].copy_(self._slice_of(name, p))

    def moment(self, key: str, name: str) -> Tensor:
        like = self._sharded[name]
        local = self.optimizer.state[self._slices[name]][key]
        whole = DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return whole.full_tensor()

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


class Zero:
    """DeepSpeed's ZeRO: optimizer state (1), gradients too (2), weights too (3) are spread over the ranks.

    DeepSpeed steps on float32 copies of its own, a part on each rank, which are not the module's parameters: weights
    that were changed from outside reach them by ``scatter`` alone.
    """

    together = True

    def __init__(self, runtime: Runtime, model: TextVAE, settings: OptimizerConfig):
        from deepspeed import utils, zero

        self._utils, self._gathered = utils, zero.GatheredParameters
        # Stages 1 and 2 leave the model whole on every rank, as views of one flat tensor.
        self._model, trained = model, copy.deepcopy(model) if runtime.zero_stage == 3 else model
        self._parameters = dict(trained.named_parameters())
        optimizer = _optimizer(trained.parameters(), settings)
        self.module, prepared = runtime.accelerator.prepare(trained, optimizer)
        self._zero = prepared.optimizer
        self.optimizer = self._zero.optimizer
        if runtime.zero_stage == 3:
            _begin(self.optimizer, self._zero.fp32_partitioned_groups_flat)
        else:
            _begin(self.optimizer, self._zero.single_partition_of_fp32_groups)
            self._zero._lazy_init_hp_params_optimizer_state()
        # Stage 3 has made a step already, without a gradient but with weight decay.
        self.scatter()

    def step(self) -> Tensor:
        """Accelerate has DeepSpeed clip and step within the last micro-batch's backward."""
        norm = torch.inf if self._zero.overflow else self.module.get_global_grad_norm()
        return torch.as_tensor(norm, device=self.module.device)

    @torch.no_grad()
    def gather(self) -> None:
        if self._model is not self.module.module:
            with self._gathered(list(self._parameters.values())):
                for name, p in self._model.named_parameters():
                    p.copy_(self._parameters[name])

    @torch.no_grad()
    def scatter(self) -> None:
        if self._model is not self.module.module:
            with self._gathered(list(self._parameters.values()), modifier_rank=0):
                for name, p in self._model.named_parameters():
                    self._parameters[name].copy_(p)
        self._zero.refresh_fp32_params()

    def moment(self, key: str, name: str) -> Tensor:
        return self._utils.safe_get_full_optimizer_state(self._parameters[name], key)

    def set_moment(self, key: str, name: str, value: Tensor) -> None:
        self._utils.safe_set_full_optimizer_state(self._parameters[name], value.to(self.module.device), key)

    def own_state(self) -> dict[str, Tensor]:
        return {}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        pass


def _compress(
    module: DistributedDataParallel, communication: CommunicationConfig
) -> powerSGD_hook.PowerSGDState | None:
    """Have DDP send its gradients as the config says. Returns what PowerSGD keeps from step to step."""
    if communication.compression == "bf16":
        module.register_comm_hook(None, _bf16_hook)
    elif communication.compression == "powersgd":
        memory = powerSGD_hook.PowerSGDState(
            None,
            matrix_approximation_rank=communication.powersgd_rank,
            start_powerSGD_iter=communication.powersgd_start,
        )
        module.register_comm_hook(memory, powerSGD_hook.powerSGD_hook)
        return memory
    return None


def _bf16_hook(state, bucket):  # torch reads the annotations, and takes them for texts
    # By a name of its own: torch knows its hook by name, and refuses it over gloo, which sums bf16 well.
    return default_hooks.bf16_compress_hook(state, bucket)


def _optimizer(parameters: Iterable[Tensor], settings: OptimizerConfig) -> torch.optim.Optimizer:
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    parameters = list(parameters)
    # On CPUs the fused step also writes the clipped gradient: twice the memory traffic of one that does not.
    on_gpu = parameters[0].device.type == "cuda"
    return torch.optim.SGD(parameters, settings.learning_rate, fused=on_gpu, foreach=not on_gpu)


def _begin(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Lay out what AdamW keeps, which it would else do at its first step."""
    if isinstance(optimizer, torch.optim.AdamW):
        for p in parameters:
            kept = {key: torch.zeros_like(p, requires_grad=False) for key in MOMENTS}
            optimizer.state[p] = {STEP: torch.zeros((), device=p.device)} | kept


def _norm(gradients: list[Tensor]) -> Tensor:
    """Global norm of gradients, of which some hold the rows of a batch's words alone."""
    values = [g.values() if g.is_sparse else g for g in gradients]
    if values[0].device.type == "cpu":
        # A dot product takes half the time of torch's norm.
        return torch.stack([torch.dot(v.flatten(), v.flatten()) for v in values]).sum().sqrt()
    return get_total_norm(values)


def _clipped_step(optimizer: torch.optim.Optimizer, norm: Tensor, clip_norm: float | None) -> None:
    """A step that clips the gradient by its norm on its way, and leaves it out where the norm is not finite."""
    if optimizer.defaults["fused"]:
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        if clip_norm is not None:
            optimizer.grad_scale = (norm / clip_norm).clamp(min=1.0)
        optimizer.step()
    elif torch.isfinite(norm):
        # SGD on a CPU: a smaller rate is a smaller gradient, and the norm is at hand.
        rates = [group["lr"] for group in optimizer.param_groups]
        scale = 1.0 if clip_norm is None else max(float(norm) / clip_norm, 1.0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / scale
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    optimizer.zero_grad()
