"""What a device supports, and how it manages memory."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable

import torch


def has_bf16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 instructions, which every GPU is assumed to have."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def set_onednn(enabled: bool) -> None:
    """Switch oneDNN on or off for the whole process."""
    set_flags: Callable[..., object] = torch.backends.mkldnn.set_flags
    set_flags(_enabled=enabled)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory.

    By default glibc returns large blocks to the system at once, and allocating them again takes a third of a step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # <malloc.h>
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)


def peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has had, in MiB: of the GPU, or on a CPU all of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
