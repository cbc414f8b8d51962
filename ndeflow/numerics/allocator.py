"""What becomes of freed memory: given back to the system, or kept for the next step."""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEPT = 1 << 28


@cache
def keep_freed_memory() -> None:
    """Let the process keep up to 256 MiB that it frees, where the C library can be told so (glibc); once.

    A step's temporaries are freed and wanted again thousands of times. Given back to the system each time, their pages
    are cleared each time: a gradient of 512 rows took twice as long.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_MMAP_THRESHOLD, _KEPT)
