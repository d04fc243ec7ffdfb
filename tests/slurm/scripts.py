"""Helpers for tests of the scripts without a cluster."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE, wait_until

CONFIG = "configs/tests/tiny.yaml"

SPACE = "space: {kl.target_rate: {grid: [2, 4]}}"

SWEEP = "configs/tests/sweep.yaml"


def bash(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    inherited["PATH"] = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    return subprocess.run(
        ["bash", *arguments], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=PATIENCE
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
    starts = folder / "notes" / "starts"
    wait_until(lambda: starts.exists() and len(starts.read_text()) >= count, f"Ray is started {count} times")
