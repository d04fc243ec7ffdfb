"""How long commands take to start, as ratios to ``import torch``.

    python -m tests.benchmarks.starts [--rounds N] [--sweep] [--out FILE.json]

Each start is a process of its own on a corpus that is already prepared. The starts take turns, round by round, and a
ratio is to ``import torch`` in the same round. Processor time depends less on other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from scaling.tables import plain_table
from tests.benchmarks.contestants import quartiles
from tests.benchmarks.machine import CONSOLE

ROOT = Path(__file__).resolve().parents[2]
TORCH = "import torch"

# The most seconds of one start.
PATIENCE = 300.0

# The training whose start is timed, and the model that is sampled from: of the built-in corpus, with the model's usual
# sizes, as short as can be.
CONFIG = {
    "data": {"path": "captions", "valid_size": 20, "test_size": 20},
    "pretrain": {"max_epochs": 0},
    "train": {"max_epochs": 1},
    "kl": {"policy": "constant"},
    "evaluation": {"validation_samples": 1, "importance_samples": 1, "samples": 0},
}

# Trains one step and ends there, as fast as a process can.
ONE_STEP = """
import os, sys
from distvae.train import main
from distvae.training.step import TrainStep
def once(self, *arguments):
    plain(self, *arguments)
    os._exit(0)
plain, TrainStep.__call__ = TrainStep.__call__, once
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Start:
    """A start to time.

    Attributes:
        goal: seconds on an idle machine; None if there is no goal.
        run: starts and ends it, and returns its seconds and its processor time; NaN where it is ended from outside.
    """

    name: str
    goal: float | None
    run: Callable[[], tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.starts", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sweep", action="store_true", help="also time a sweep, which needs Ray")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distvae-starts-") as folder:
        found = measure(starts(Path(folder), options.sweep), options.rounds)
    show(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2), encoding="utf-8")


def starts(folder: Path, sweep: bool) -> list[Start]:
    """Return what to time; prepares a corpus and trains a model in ``folder`` for it."""
    config = folder / "starts.yaml"
    content = CONFIG | {"data": CONFIG["data"] | {"cache": str(folder / "cache")}}
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    # The model has a corpus of its own, of few sentences; the second command prepares that of the trainings.
    for program, more in ((["-m", "distvae", "train"], ["data.train_size=64"]), (["-c", ONE_STEP], [])):
        _whole([sys.executable, *program, str(config), f"run={folder / f'model-{len(more)}'}", *more])()

    def training(*command: str) -> Callable[[], list[str]]:
        return lambda: [*command, str(config), f"run={folder / f'run-{time.time_ns()}'}"]

    python = sys.executable
    launched = [python, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launched += ["--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "distvae" / "train.py")]
    found = [
        Start(TORCH, None, _whole([python, "-c", TORCH])),
        Start("import distvae", None, _whole([python, "-c", "import distvae"])),
        Start("distvae --help", None, _whole([python, "-m", "distvae", "--help"])),
        Start("import distvae.train", 2.0, _whole([python, "-c", "import distvae.train"])),
        Start("distvae sample RUN", 1.5, _whole([python, "-m", "distvae", "sample", str(folder / "model-1")])),
        Start("first line of distvae train", 2.0, partial(_first_line, training(python, "-m", "distvae", "train"))),
        Start("first training step", None, partial(_to_end, training(python, "-c", ONE_STEP))),
        Start("first line under accelerate launch", None, partial(_first_line, training(*launched))),
    ]
    if sweep:
        found.append(Start("first trial of distvae sweep trains", 8.0, partial(_sweep, folder, config)))
    return found


def measure(wanted: list[Start], rounds: int) -> dict[str, Any]:
    """Time all starts, in turns."""
    seconds: dict[str, list[float]] = {start.name: [] for start in wanted}
    processor: dict[str, list[float]] = {start.name: [] for start in wanted}
    for number in range(-1, rounds):
        for start in wanted:
            took, used = start.run()
            if number >= 0:
                seconds[start.name].append(took)
                processor[start.name].append(used)
    base = np.array(seconds[TORCH])
    return {
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "rounds": rounds,
        "starts": {
            start.name: {
                "seconds": float(np.median(seconds[start.name])),
                "processor_seconds": float(np.median(processor[start.name])),
                "ratio": quartiles(np.array(seconds[start.name]) / base),
                "processor_ratio": quartiles(np.array(processor[start.name]) / np.array(processor[TORCH])),
                "goal": start.goal,
            }
            for start in wanted
        },
    }


def show(found: dict[str, Any]) -> None:
    table = plain_table("", "s", "× import torch (quartiles)", "processor, s", "× import torch", "goal, s")
    for name, start in found["starts"].items():
        low, mid, high = start["ratio"]
        processor = start["processor_seconds"], start["processor_ratio"][1]
        table.add_row(
            name,
            f"{start['seconds']:.2f}",
            f"{mid:.2f} ({low:.2f} … {high:.2f})",
            *("–" if math.isnan(value) else f"{value:.2f}" for value in processor),
            "" if start["goal"] is None else f"{start['goal']:.1f}",
        )
    load = found["load"][0]
    CONSOLE.print(f"\n{found['cores']} cores, torch {found['torch']}, load {load:.1f}, {found['rounds']} rounds", table)


# -- Ways to time a start ----------------------------------------------------------------------------------------------


def _whole(command: list[str]) -> Callable[[], tuple[float, float]]:
    return partial(_to_end, lambda: command)


def _to_end(command: Callable[[], list[str]]) -> tuple[float, float]:
    """Time a process from its start to its end."""
    began = time.perf_counter()
    process = _start(command())
    said, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (said + errors).decode()
    return seconds, usage.ru_utime + usage.ru_stime


def _first_line(command: Callable[[], list[str]]) -> tuple[float, float]:
    """Time a process to its first line, and kill it."""
    began = time.perf_counter()
    process = _start(command())
    line = process.stdout.readline()
    seconds = time.perf_counter() - began
    os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert b": starting " in line, (line + errors).decode()
    return seconds, math.nan


def _sweep(folder: Path, config: Path) -> tuple[float, float]:
    """Time a sweep until its first trial is about to train, and interrupt it."""
    name = f"sweep-{time.time_ns()}"
    sweep = {"base": str(config), "run": str(folder / name), "finalists": {"count": 0}}
    sweep |= {"space": {"seed": {"grid": [1, 2]}}, "set": {"train.max_epochs": 1000, "plateau.patience": 1000}}
    file, log = folder / f"{name}.yaml", folder / name / "logs" / "0000.log"
    file.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    began = time.perf_counter()
    process = _start([sys.executable, "-m", "distvae", "sweep", str(file)])
    # The trial introduces itself right before its first step.
    while not log.exists() or "parameters; " not in log.read_text(encoding="utf-8"):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.perf_counter() < began + PATIENCE, f"{log}: has no line of a training"
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 75, errors.decode()
    return seconds, math.nan


def _start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
