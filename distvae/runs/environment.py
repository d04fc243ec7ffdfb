"""Provenance of a run: versions, machine, processes, commit and code."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from distvae import __version__
from distvae.system.files import read_as, sha256


def environment(processes: str) -> dict[str, Any]:
    """Return the versions, machine, processes and commit that a run uses."""
    packages = ("torch", "accelerate", "datasets", "numpy", "nltk", "regex", "tokenizers")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": device_name(),
        "processes": processes,
        # A cluster job may run a copy of the code that is not installed.
        "packages": {"distvae": __version__} | {name: version(name) for name in packages},
        "commit": _commit(),
    }


def code_digest() -> str:
    """Return the SHA-256 of this package's source, in hex digits."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0{sha256(path)}\0".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Environment:
    """The part of ``environment.json`` that reports print."""

    python: str
    device: str
    processes: str
    packages: dict[str, str]
    commit: str | None = None


def read_environment(run: Path) -> Environment:
    """Read a run's ``environment.json``.

    Raises:
        UserError: the file cannot be read, or has another form.
    """
    return read_as(Environment, run / "environment.json", "the environment of a run")


def device_name() -> str:
    """Return the name of this process's GPU, or of the CPU if it has none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """Return the commit of the source tree, with `-dirty` if it has changes; None outside a checkout of this project.

    A cluster job's copy of the tree (slurm/job.sh) has the commit in a file COMMIT.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        noted = root / "COMMIT"
        return noted.read_text(encoding="utf-8").strip() if noted.exists() else None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
