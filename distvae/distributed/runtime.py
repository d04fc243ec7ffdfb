"""The processes of a run: the Accelerator, this process's rank, and the collectives outside the engines."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    KwargsHandler,
    broadcast_object_list,
)

from distvae.config.communication import CommunicationConfig, PowerSGD
from distvae.config.schema import Config, OptimizerConfig, Precision
from distvae.distributed.device import has_bf16, keep_freed_memory, set_onednn
from distvae.distributed.heartbeat import Heartbeat, Store
from distvae.system import launcher
from distvae.system.cores import usable_cores
from distvae.system.errors import OwnError, PeerError, UserError
from distvae.system.plural import counted

Result = TypeVar("Result")

# The most seconds between two polls while processes wait for each other.
POLL = 0.5
DEFAULTS = Config()


class Runtime:
    """One process of a run, started alone or by any launcher that sets torch's environment variables.

    Args:
        optimizer: precision (None leaves it to the launcher), micro-batches, and the clip norm for DeepSpeed.
        communication: between the processes.
        cpu_threads: of this process, without a GPU; None shares the machine's cores among its processes.
        keep_memory: without a GPU, keep freed memory for the life of the process.

    Raises:
        UserError: a launcher started several processes, but they cannot find each other; the launcher asks for what
            this trainer cannot do.
    """

    def __init__(
        self,
        optimizer: OptimizerConfig = DEFAULTS.optimizer,
        communication: CommunicationConfig = DEFAULTS.communication,
        cpu_threads: int | None = None,
        keep_memory: bool = True,
    ):
        launcher.check()
        self.communication = communication
        precision = optimizer.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision not in ("no", "bf16"):
            raise UserError(
                f"the launcher's mixed_precision is {precision}: use no or bf16, there or by optimizer.mixed_precision"
            )
        self.mixed_precision: Precision = "bf16" if precision == "bf16" else "no"
        on_cpu = not torch.cuda.is_available()
        by_deepspeed = _flag("ACCELERATE_USE_DEEPSPEED")
        self.fsdp = _flag("ACCELERATE_USE_FSDP")
        if self.fsdp and (os.environ.get("FSDP_VERSION") != "2" or _flag("FSDP_OFFLOAD_PARAMS")):
            raise UserError("the launcher's fsdp_config needs fsdp_version: 2, and no fsdp_offload_params")
        self.fsdp_reshards = _flag("FSDP_RESHARD_AFTER_FORWARD", "true")
        sends = replace(communication, timeout_minutes=DEFAULTS.communication.timeout_minutes)
        if (by_deepspeed or self.fsdp) and sends != DEFAULTS.communication:
            raise UserError(
                "communication.compression and communication.local_sgd_steps belong to plain data parallelism, not to"
                f" {'DeepSpeed' if by_deepspeed else 'FSDP'}, which the launcher asks for"
            )
        deepspeed = _deepspeed(optimizer, self.mixed_precision) if by_deepspeed else None
        if by_deepspeed or self.fsdp:
            launcher.require("DeepSpeed, which the launcher asks for," if by_deepspeed else "FSDP, which is asked for,")
        # Twice as long as the heartbeat waits, because the heartbeat names the process that hangs.
        timeout = timedelta(minutes=2 * communication.timeout_minutes)
        # All ranks compute the same buffers, so DDP need not send them before each forward.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
        if isinstance(communication.compression, PowerSGD):
            # PowerSGD's hook chains collectives in one thread per bucket, and these threads race over gloo. One bucket
            # is enough, because its messages are small.
            ddp.bucket_cap_mb = 2**20
        kwargs: list[KwargsHandler] = [
            InitProcessGroupKwargs(timeout=timeout, backend="gloo" if by_deepspeed and on_cpu else None),
            ddp,
        ]
        # The engine sets up FSDP2, because Accelerate supports FSDP on GPUs only. Hide it from Accelerate.
        with _hidden("ACCELERATE_USE_FSDP"), _launched_well():
            self.accelerator = Accelerator(
                # Without this, processes that `--multi_gpu` starts on a machine without a GPU do not find each other.
                # With it, Accelerate silently drops DeepSpeed.
                cpu=on_cpu and not by_deepspeed,
                # DeepSpeed autocasts float32 weights itself, as Accelerate does elsewhere.
                mixed_precision="no" if by_deepspeed else self.mixed_precision,
                deepspeed_plugin=deepspeed,
                gradient_accumulation_plugin=GradientAccumulationPlugin(
                    num_steps=optimizer.accumulation_steps, sync_with_dataloader=False
                ),
                kwargs_handlers=kwargs,
            )
        self.zero_stage = self.accelerator.deepspeed_plugin.zero_stage if by_deepspeed else None
        # Makes cuBLAS and cuDNN's LSTMs deterministic.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.device = self.accelerator.device
        self._stop_if_alone()
        self.heartbeat, self._meetings = None, 0
        if self.world_size > 1:
            self._store = cast("Store", dist.distributed_c10d._get_default_store())
            self.heartbeat = Heartbeat(self._store, self.rank, self.world_size, 60 * communication.timeout_minutes)
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu":
            # Gradients through a hundred steps of an untrained LSTM become denormal, which slows a CPU down tenfold.
            # Threads that start later inherit the setting.
            torch.set_flush_denormal(True)
            cores, processes = usable_cores(), launcher.number("LOCAL_WORLD_SIZE", 1)
            torch.set_num_threads(cpu_threads or max(1, cores // processes))
            if keep_memory:
                keep_freed_memory()
        # TF32 in LSTMs (10 bits of mantissa) only for those who ask for bfloat16 (7 bits).
        self._tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = self.mixed_precision == "bf16"
        self._onednn = bool(torch.backends.mkldnn.enabled)
        if self.emulates_bf16:
            # oneDNN rejects a bfloat16 LSTM on such a CPU; torch's own kernels run it.
            set_onednn(False)

    @property
    def engine(self) -> str:
        """The name of the engine that carries out a step."""
        if self.zero_stage is not None:
            return f"ZeRO-{self.zero_stage}"
        if self.fsdp:
            return "FSDP2"
        if self.world_size == 1:
            return "alone"
        if self.communication.local_sgd_steps is not None:
            return f"local SGD, {self.communication.local_sgd_steps} steps"
        compression = self.communication.compression.name
        return "DDP" if compression == "none" else f"DDP, {compression}"

    @property
    def processes(self) -> str:
        """The number of processes and their engine, for messages."""
        count = counted(self.world_size, "process", "processes")
        return count if self.engine == "alone" else f"{count} by {self.engine}"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def emulates_bf16(self) -> bool:
        """Whether bf16 is requested on a CPU without bfloat16 instructions, where it is slower than float32."""
        return self.mixed_precision == "bf16" and not has_bf16(self.device)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place: one collective."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks, in place: one collective."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def gather(self, value: torch.Tensor) -> torch.Tensor | None:
        """Gather every rank's value on the main process, in CPU memory: […] → [world_size, …]; None on the others.

        One collective.
        """
        if self.world_size == 1:
            return value[None].to("cpu", copy=True)
        if not self.is_main:
            dist.gather(value.contiguous())
            return None
        rows = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.gather(value.contiguous(), rows)
        return torch.stack([row.cpu() for row in rows])

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Call ``action`` on the main process and return its result on every process: one broadcast.

        ``action`` may take any time: no collective waits meanwhile.

        Raises:
            UserError: what ``action`` raised, on the main process; ``PeerError`` on the others.
        """
        outcome: list[Any] = [None, None]
        failure = None
        if self.is_main:
            try:
                outcome[0] = action()
            except Exception as error:
                failure, outcome[1] = error, str(error)
        if self.world_size > 1:
            self._meet()
            broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise PeerError(outcome[1])
        result: Result = outcome[0]
        return result

    def on_each_machine(self, action: Callable[[], object]) -> None:
        """Call ``action`` on the first process of each machine while the others wait, for any time: one collective.

        Raises:
            UserError: what ``action`` raised, on its process; ``PeerError`` on the others.
        """
        failure = None
        if self.accelerator.is_local_main_process:
            try:
                action()
            except Exception as error:
                failure = error
        if self.world_size > 1:
            self._meet()
        failed = self.max(torch.tensor(float(failure is not None), device=self.device))
        if failure is not None:
            raise failure
        if failed > 0:
            raise PeerError("the process that failed tells why")

    def agree(self, what: dict[str, Any]) -> None:
        """Check that all ranks hold the same values: gathers hashes, and the values if the hashes differ.

        Args:
            what: JSON values by name.

        Raises:
            UserError: names the first difference, on the main process; ``PeerError`` on the others.
        """
        if self.world_size == 1:
            return
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        if len(set(self._gather_objects(digest))) == 1:
            return
        first, *others = self._gather_objects(what)
        if not self.is_main:
            raise PeerError("the main process prints what differs")
        rank, theirs = next((rank, theirs) for rank, theirs in enumerate(others, 1) if theirs != first)
        differing = [key for key in (first | theirs) if first.get(key) != theirs.get(key)]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(
            f"rank {rank} has {differing[0]}={theirs.get(differing[0])}, but rank 0 has"
            f" {differing[0]}={first.get(differing[0])}{more}: start all ranks with the same command and the same code"
        )

    def _gather_objects(self, value: Result) -> list[Result]:
        """Return every rank's value, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def _meet(self) -> None:
        """Wait until all processes are here, outside any collective, because collectives time out.

        Heartbeats detect processes that hang.
        """
        self._meetings += 1
        key, pause = f"distvae/meeting/{self._meetings}", 0.001
        # The launcher that hosts the store may be killed while its processes save. The next collective also waits.
        with suppress(dist.DistNetworkError):
            here = self._store.add(key, 1)
            while here < self.world_size:
                time.sleep(pause)
                pause = min(2 * pause, POLL)
                here = self._store.add(key, 0)

    def _stop_if_alone(self) -> None:
        started = launcher.number("WORLD_SIZE", 1)
        names = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
        tasks = max(launcher.number(name, 1) for name in names)
        if started != self.world_size or tasks > self.world_size:
            raise UserError(
                f"the launcher started {max(started, tasks)} processes, but this one sees {self.world_size}: they would"
                " train alone, side by side, in one folder. Start one `accelerate launch --multi_gpu --num_processes N"
                " distvae/train.py …` per machine (on CPUs too, without --cpu); it starts the N processes itself"
            )

    def close(self) -> None:
        """Leave the process group. Drop the prepared model first: gloo can abort while it outlives the group."""
        if self.heartbeat is not None:
            self.heartbeat.close()
        self.accelerator.free_memory()
        if dist.is_available() and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()
        torch.set_num_threads(self._threads)
        torch.set_flush_denormal(False)
        set_onednn(self._onednn)
        torch.backends.cudnn.allow_tf32 = self._tf32
        _forget_accelerator()


def _forget_accelerator() -> None:
    """Reset Accelerate's global state, so that the next run in this process does not get this one's settings."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _flag(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() == "true"


@contextmanager
def _launched_well() -> Iterator[None]:
    """Turn any error of the Accelerator's start into one line, because it depends only on the launcher's settings.

    Raises:
        UserError: the processes do not find each other, or a variable has an unknown value.
    """
    try:
        yield
    except Exception as error:
        _forget_accelerator()
        reason = str(error).partition("Exception raised from")[0].strip() or type(error).__name__
        raise OwnError(
            f"this process cannot start as the launcher's environment asks: {reason}; see docs/launching.md"
        ) from error


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Remove an environment variable within the context."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _deepspeed(optimizer: OptimizerConfig, mixed_precision: str) -> DeepSpeedPlugin:
    """Combine the launcher's DeepSpeed settings with the run's optimizer settings.

    Raises:
        UserError: DeepSpeed is not installed, or a setting belongs into the config or is not supported.
    """
    for package in ("deepspeed", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the launcher asks for DeepSpeed; {package} is missing: pip install -e '.[deepspeed]' in the checkout"
            )
    # Silence warnings about DeepSpeed's internals and about optimizers that it has not tested.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from deepspeed import ops

    # Tell DeepSpeed that it can compile nothing. Otherwise it probes compilers, and its first start on a CPU spends
    # minutes on compiling an inference kernel that is never called here.
    ops.__compatible_ops__ = {}
    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    zero = settings["zero_optimization"]
    ours = {
        "optimizer": "optimizer.name",
        "scheduler": "plateau",
        "fp16": "optimizer.mixed_precision",
        "bf16": "optimizer.mixed_precision",
    }
    for section, key in ours.items():
        if section in settings:
            raise UserError(f"the DeepSpeed config has a section {section}: leave it out; the run's {key} rules")
    if settings.get("gradient_clipping", "auto") != "auto":
        raise UserError("the DeepSpeed config sets gradient_clipping: leave it out, optimizer.clip_norm rules")
    if plugin.zero_stage not in (1, 2, 3):
        raise UserError(f"zero_stage is {plugin.zero_stage}: use 1, 2 or 3, or DDP by `accelerate launch --multi_gpu`")
    for part in ("optimizer", "param"):
        if zero.get(f"offload_{part}", {}).get("device", "none") != "none":
            raise UserError(f"the DeepSpeed config offloads ({part}): the fused optimizers here step on the device")
    settings["gradient_accumulation_steps"] = optimizer.accumulation_steps
    settings["gradient_clipping"] = optimizer.clip_norm or 0.0
    # Required by DeepSpeed but unused: the training step scales the loss by the number of sentences.
    settings["train_micro_batch_size_per_gpu"] = 1
    if mixed_precision == "bf16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return plugin
