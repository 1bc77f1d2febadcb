"""Keeping freed memory in the process: a tenth of a CPU training step is otherwise page faults."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # <malloc.h>
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> None:
    """Tells glibc not to hand large freed blocks back to the kernel; elsewhere does nothing.

    Activations are allocated and freed in every step. By default glibc maps and unmaps each of
    them, and the kernel zeroes the pages again.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**26)
