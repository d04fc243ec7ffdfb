"""Helpers for tests that start sweeps with real Ray, as users do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from distvae.train import main
from tests.compare import numbers
from tests.conftest import PATIENCE, ROOT, wait_until

# A number of sentences for which rounding errors stay small.
SET = {"evaluation.importance_samples": 50, "data.train_size": 81}


def write(folder: Path, tiny: Path, **settings: Any) -> Path:
    """Write a sweep file."""
    path = folder / "sweep file.yaml"
    settings = {"base": str(tiny), "run": str(folder / "sweep"), "finalists": {"count": 0}, "set": SET} | settings
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ROOT / "launch" / "sweep.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run a sweep to its end. Return its output."""
    process = start(*arguments)
    said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    return said


def trials(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trials.json").read_text())["trials"]


def alone(tmp_path: Path, tiny: Path, **overrides: Any) -> Path:
    """Train the run of a trial by itself. Return its folder."""
    folder = tmp_path / "alone"
    settings = SET | {"evaluation.validation_samples": 50} | overrides
    assert main([str(tiny), f"run={folder}", *(f"{key}={value}" for key, value in settings.items())]) == 0
    return folder


def after_pretraining(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's VAE, without step numbers, which depend on the pretraining."""
    rows = [row for row in numbers(folder) if row["stage"] == "train"]
    for row in rows:
        del row["step"]
    return rows


def until(condition: Callable[[], object], what: str, process: subprocess.Popen) -> None:
    """Wait for what a process does before it ends."""

    def is_met() -> object:
        met = condition()
        assert met or process.poll() is None, process.communicate()
        return met

    wait_until(is_met, what)
