"""The processes of a run: the Accelerator, this process's place, and every collective there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast_object_list

from distvae.errors import PeerError, UserError

Result = TypeVar("Result")

# The main process may tokenise a large corpus while the others wait; a dead process is noticed by the launcher.
PATIENCE = timedelta(hours=1)


class Runtime:
    """One process of a run, started alone or by any launcher that sets torch's environment variables.

    Args:
        mixed_precision: ``no`` or ``bf16``; None leaves it to the launcher.
        accumulation_steps: micro-batches of one optimizer step.
        cpu_threads: of this process where there is no GPU; None shares the machine's cores among its processes.

    Raises:
        UserError: a launcher started several processes, but they cannot find each other.
    """

    def __init__(self, mixed_precision: str | None = None, accumulation_steps: int = 1, cpu_threads: int | None = None):
        self.accelerator = Accelerator(
            # Without this, processes that `--multi_gpu` starts on a machine without a GPU each believe they are alone.
            cpu=not torch.cuda.is_available(),
            mixed_precision=mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=accumulation_steps, sync_with_dataloader=False
            ),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.device = self.accelerator.device
        self._stop_if_alone()
        if self.accelerator.mixed_precision not in ("no", "bf16"):
            raise UserError(
                f"the launcher's mixed_precision is {self.accelerator.mixed_precision}: use no or bf16, there or by"
                " optimizer.mixed_precision"
            )
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu":
            cores, processes = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(cpu_threads or max(1, cores // processes))
        self._onednn = torch.backends.mkldnn.enabled
        if self.emulates_bf16:
            # oneDNN refuses a bfloat16 LSTM on such a CPU; torch's own kernels take it.
            torch.backends.mkldnn.set_flags(_enabled=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def emulates_bf16(self) -> bool:
        """Whether bf16 was asked of a CPU without bfloat16 instructions, on which it is slower than float32."""
        asked = self.device.type == "cpu" and self.accelerator.mixed_precision == "bf16"
        return asked and not torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place: one collective."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def on_main(self, action: Callable[[], Result]) -> Result:
        """What ``action`` returns on the main process, on every process: one broadcast.

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
            broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise PeerError(outcome[1])
        return outcome[0]

    def _stop_if_alone(self) -> None:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        tasks = max(
            int(os.environ.get(name, "1")) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
        )
        if started != self.world_size or tasks > self.world_size:
            raise UserError(
                f"the launcher started {max(started, tasks)} processes, but this one sees {self.world_size}: they would"
                " train alone, side by side, in one folder. Start one `accelerate launch --multi_gpu --num_processes N"
                " distvae/train.py …` per machine (on CPUs too, without --cpu); it starts the N processes itself"
            )

    def close(self) -> None:
        """Leave the process group. Drop the prepared model first: gloo can abort while it outlives the group."""
        self.accelerator.free_memory()
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(self._threads)
        torch.backends.mkldnn.set_flags(_enabled=self._onednn)
        # Accelerate keeps its state for the life of a process: a next run in it would get this one's settings.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
