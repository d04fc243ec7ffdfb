"""The machine that is measured, and what a process takes of it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from rich.console import Console

from distvae.runs import environment

CONSOLE = Console(width=120)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """Return the name that runs note, and whether a CPU has AMX."""
    cpu = Path("/proc/cpuinfo")
    amx = device().type == "cpu" and cpu.exists() and "amx_bf16" in cpu.read_text()
    return f"{environment.device_name()}{' with AMX' if amx else ''}"


def memory(name: str, process: int | str = "self") -> int:
    """Return a process's memory in bytes: ``VmHWM``, the peak, or ``RssAnon``, without pages of files.

    getrusage's peak is at least that of the process that this one was forked from.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024
