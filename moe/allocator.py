"""glibc's allocator, told to keep what a training step frees."""

from __future__ import annotations

import ctypes
import sys

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
