"""The machine that is measured, and what a process takes of it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch
from rich.console import Console

CONSOLE = Console(width=120)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    amx = any("amx_bf16" in line for line in lines if line.startswith("flags"))
    return f"{model or platform.processor()}{' with AMX' if amx else ''}"


def memory(name: str, process: int | str = "self") -> int:
    """Bytes of a process, by their name in /proc: ``VmHWM`` at its peak, ``RssAnon`` of what is no page of a file.

    Not getrusage's peak, which is that of the process that this one was forked from, if that was higher.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024
