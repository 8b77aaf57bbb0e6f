"""Tune how the C library handles freed memory. Standard library only, so the API can use it without numpy."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors, instead of returning it and getting zeroed pages again.

    For processes that compute on the CPU: otherwise every layer's output is mapped anew.
    """
    _mallopt(_M_MMAP_MAX, 0)  # raising the mmap threshold instead is not enough: its maximum is 32 MiB
    _mallopt(_M_TRIM_THRESHOLD, 2**30)


def share_freed_memory() -> None:
    """Let the threads of this process share freed memory, instead of each keeping its own.

    For processes with many mostly idle threads, such as the API. Call it before they start.
    """
    _mallopt(_M_ARENA_MAX, 1)


def _mallopt(parameter: int, value: int) -> None:
    """Call mallopt(3); does nothing if the C library is not glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
