"""What sending its gradient adds to a step, measured by ``python -m scaling measure`` in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.contestants import Contest
from tests.benchmarks.machine import CONSOLE, device

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sent:
    """Times of a step whose global batch several processes share."""

    batch_size: int
    processes: int
    alone: float  # seconds without sending
    sending: float  # seconds under DDP

    @property
    def communication(self) -> float:
        """Seconds of sending that the backward does not hide."""
        return self.sending - self.alone


def communication(
    contest: Contest, batch_sizes: list[int], vocabulary_size: int, tokens: int, rounds: int, *overrides: str
) -> list[Sent]:
    """Time steps of two processes on a CPU, or of one process per GPU.

    Return nothing for a single GPU, or if the times are too noisy.
    """
    on_gpus = device().type == "cuda"
    processes = torch.cuda.device_count() if on_gpus else 2
    if processes == 1:
        CONSOLE.print("One GPU: there is nothing to send.")
        return []
    shares = {size: max(1, size // processes) for size in batch_sizes}
    each = set(shares.values())
    if len(each) == 1:
        each |= {4 * n for n in each}  # the fit needs two sizes
    threads = [] if on_gpus else [f"cpu_threads={max(1, torch.get_num_threads() // processes)}"]
    launcher = ROOT / "launch" / "accelerate" / ("multi_gpu.yaml" if on_gpus else "cpu.yaml")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launcher),
        "--num_processes", str(processes), "-m", "scaling", "measure", str(contest.config), *contest.overrides,
        *threads, *overrides, f"--vocabulary={vocabulary_size}", f"--tokens={tokens}", f"--rounds={rounds}",
        f"--each={','.join(map(str, sorted(each)))}", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        CONSOLE.print(f"Communication was not measured: {done.stderr.strip()}")
        return []
    times = {step["each"]: step for step in json.loads(done.stdout)["steps"]}
    return [Sent(size, processes, times[n]["alone"], times[n]["measured"]) for size, n in shares.items()]
