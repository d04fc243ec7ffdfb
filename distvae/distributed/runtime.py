"""The processes of a run: the Accelerator, this process's place, and every collective there is."""

from __future__ import annotations

import ctypes
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
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from distvae.config.schema import CommunicationConfig, Config, OptimizerConfig
from distvae.distributed.heartbeat import Heartbeat
from distvae.system import launcher
from distvae.system.cores import usable_cores
from distvae.system.errors import OwnError, PeerError, UserError

Result = TypeVar("Result")

# Seconds between two looks for processes that are waited for, at most.
POLL = 0.5

DEFAULTS = Config()


class Runtime:
    """One process of a run, started alone or by any launcher that sets torch's environment variables.

    Args:
        optimizer: its precision (None leaves it to the launcher), its micro-batches, and its clip, which is DeepSpeed's
            business under ZeRO.
        communication: between the processes.
        cpu_threads: of this process where there is no GPU; None shares the machine's cores among its processes.
        keep_memory: where there is no GPU, keep freed memory for the life of the process.

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
        self.mixed_precision = optimizer.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if self.mixed_precision not in ("no", "bf16"):
            raise UserError(
                f"the launcher's mixed_precision is {self.mixed_precision}: use no or bf16, there or by"
                " optimizer.mixed_precision"
            )
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
        # Twice as long as the heartbeat waits, which names the process that hangs.
        timeout = timedelta(minutes=2 * communication.timeout_minutes)
        kwargs: list = [InitProcessGroupKwargs(timeout=timeout, backend="gloo" if by_deepspeed and on_cpu else None)]
        if communication.compression == "powersgd":
            # Its hook chains collectives in a thread for each bucket, which race over gloo, and what it sends is small:
            # it gets all gradients in one bucket.
            kwargs.append(DistributedDataParallelKwargs(bucket_cap_mb=2**20))
        # FSDP2 is the business of the engine: Accelerate carries it on GPUs alone, and must not take it for its own.
        with _hidden("ACCELERATE_USE_FSDP"), _launched_well():
            self.accelerator = Accelerator(
                # Without this, processes that `--multi_gpu` starts on a machine without a GPU each believe they are
                # alone; with it, DeepSpeed is dropped without a word.
                cpu=on_cpu and not by_deepspeed,
                # Under DeepSpeed bf16 is its autocast of float32 weights, which is what it is elsewhere.
                mixed_precision="no" if by_deepspeed else self.mixed_precision,
                deepspeed_plugin=deepspeed,
                gradient_accumulation_plugin=GradientAccumulationPlugin(
                    num_steps=optimizer.accumulation_steps, sync_with_dataloader=False
                ),
                kwargs_handlers=kwargs,
            )
        self.zero_stage = self.accelerator.deepspeed_plugin.zero_stage if by_deepspeed else None
        # With it cuBLAS, and LSTMs by cuDNN, add up in the same order every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device = self.accelerator.device
        self._stop_if_alone()
        self.heartbeat, self._meetings = None, 0
        if self.world_size > 1:
            self._store = dist.distributed_c10d._get_default_store()
            self.heartbeat = Heartbeat(self._store, self.rank, self.world_size, 60 * communication.timeout_minutes)
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu":
            # What goes back through a hundred steps of a young LSTM gets too small for float32's full precision, where
            # a CPU takes ten times as long for it. Threads that are started later take this over.
            torch.set_flush_denormal(True)
            cores, processes = usable_cores(), launcher.number("LOCAL_WORLD_SIZE", 1)
            torch.set_num_threads(cpu_threads or max(1, cores // processes))
            if keep_memory:
                _keep_memory()
        # Products of an LSTM by TF32, with 10 bits of mantissa, are for those who ask for no more than bfloat16's 7.
        self._tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = self.mixed_precision == "bf16"
        self._onednn = torch.backends.mkldnn.enabled
        if self.emulates_bf16:
            # oneDNN refuses a bfloat16 LSTM on such a CPU; torch's own kernels take it.
            torch.backends.mkldnn.set_flags(_enabled=False)

    @property
    def engine(self) -> str:
        """What carries a step, in a word."""
        if self.zero_stage is not None:
            return f"ZeRO-{self.zero_stage}"
        if self.fsdp:
            return "FSDP2"
        if self.world_size == 1:
            return "alone"
        if self.communication.local_sgd_steps is not None:
            return f"local SGD, {self.communication.local_sgd_steps} steps"
        compression = self.communication.compression
        return "DDP" if compression == "none" else f"DDP, {compression}"

    @property
    def processes(self) -> str:
        """How many there are, and by what they train."""
        count = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        return count if self.engine == "alone" else f"{count} by {self.engine}"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def emulates_bf16(self) -> bool:
        """Whether bf16 was asked of a CPU without bfloat16 instructions, on which it is slower than float32."""
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
        """Every rank's value, […] → [world_size, …], on the main process and in the CPU's memory; None on the others:
        one collective."""
        if self.world_size == 1:
            return value[None].to("cpu", copy=True)
        rows = [torch.empty_like(value) for _ in range(self.world_size)] if self.is_main else None
        dist.gather(value.contiguous(), rows)
        return torch.stack([row.cpu() for row in rows]) if self.is_main else None

    def on_main(self, action: Callable[[], Result]) -> Result:
        """What ``action`` returns on the main process, on every process: one broadcast. It may take any time.

        Raises:
            UserError: what ``action`` raised, on the main process, and ``PeerError`` on the others.
        """
        outcome: list = [None, None]
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
        return outcome[0]

    def on_each_machine(self, action: Callable[[], object]) -> None:
        """Have the first process of each machine do something, while the others wait, for any time: one collective.

        Raises:
            UserError: what ``action`` raised, on its process, and ``PeerError`` on the others.
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
        """Check that all ranks hold the same values: one gathering of hashes, and where they differ, one of the values.

        Args:
            what: values by name, as JSON takes them.

        Raises:
            UserError: they differ; names the first difference, on the main process, and ``PeerError`` on the others.
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
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def _meet(self) -> None:
        """Wait until all processes have come here, outside any collective, whose time is limited. Heartbeats tell
        whether they live."""
        self._meetings += 1
        key, pause = f"distvae/meeting/{self._meetings}", 0.001
        # A launcher that keeps the store may be killed while its processes save: the collective that follows will do.
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
        torch.backends.mkldnn.set_flags(_enabled=self._onednn)
        torch.backends.cudnn.allow_tf32 = self._tf32
        _forget_accelerator()


def _forget_accelerator() -> None:
    """Accelerate keeps its state for the life of a process: a next run in it would get this one's settings."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions, as every GPU is taken to have."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _keep_memory() -> None:
    """Have glibc keep what is freed. It returns large blocks to the system at once, and to get each anew page by page
    takes a third of a training step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # <malloc.h>
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)


def _flag(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() == "true"


@contextmanager
def _launched_well() -> Iterator[None]:
    """Turn any error of the Accelerator's start into a line: all that it goes by is the launcher's word.

    Raises:
        UserError: the processes do not find each other, or a variable has a value that nothing knows.
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
    """The environment without this variable."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _deepspeed(optimizer: OptimizerConfig, mixed_precision: str) -> DeepSpeedPlugin:
    """What the launcher asks of DeepSpeed, with what the run's config says of the optimizer.

    Raises:
        UserError: DeepSpeed is not installed, or it is asked for what is set elsewhere or cannot be done.
    """
    for package in ("deepspeed", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the launcher asks for DeepSpeed; {package} is missing: pip install -e '.[deepspeed]' in the checkout"
            )
    # What DeepSpeed says of its own insides, and of the optimizers that it has not tried, at every step or start.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from deepspeed import ops

    # What it can compile, which it finds out by trying compilers. It looks up a sum for inference on CPUs alone, takes
    # minutes of the first start to compile it, and never calls it here.
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
    # DeepSpeed wants to know it, and does nothing with it: the loss is scaled here, by the sentences there are.
    settings["train_micro_batch_size_per_gpu"] = 1
    if mixed_precision == "bf16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return plugin
