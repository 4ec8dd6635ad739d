"""glibc's allocator, told to keep what a training step frees; and how much was held."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Stops glibc from returning every large tensor to the system; True where that worked.

    By default each allocation above 32 MiB is mapped anew and its pages are cleared on first
    touch, and a training step on a CPU makes many. What it saves depends on sizes and on what else
    the machine does (`docs/results.md`). The price is that the process holds on to its peak.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far, in 1e9 bytes: of the GPU if one trains, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":  # has no getrusage
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
