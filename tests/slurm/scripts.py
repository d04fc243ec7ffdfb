"""Helpers for tests of the scripts without a cluster."""

import os
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "configs/tests/tiny.yaml"

SPACE = "space: {kl.target_rate: {grid: [2, 4]}}"

SWEEP = "configs/tests/sweep.yaml"


def bash(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    inherited["PATH"] = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    return subprocess.run(
        ["bash", *arguments], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=60
    )


def stand_ins(checkout: Path, texts: dict[str, str]) -> Path:
    """Write programs that stand in for others. Return their folder."""
    programs = checkout / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in texts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    return programs


def wait_for_starts(folder: Path, count: int) -> None:
    """Wait until the stand-in for Ray has been started this many times."""
    end = time.monotonic() + 40
    while not (starts := folder / "notes" / "starts").exists() or len(starts.read_text()) < count:
        assert time.monotonic() < end, f"Ray is not started {count} times"
        time.sleep(0.1)


def wait_for_file(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} is not there"
        time.sleep(0.05)
