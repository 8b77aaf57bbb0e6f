"""What the C library does with memory that is freed. Imports nothing: the API holds no numpy for it."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let this process keep what tensors leave, instead of giving it back and being handed zeroed pages again.

    For processes that compute on the CPU: every layer's output would otherwise be mapped anew.
    """
    _mallopt(_M_MMAP_MAX, 0)  # the threshold for mappings, which could be raised instead, ends at 32 MiB
    _mallopt(_M_TRIM_THRESHOLD, 2**30)


def share_freed_memory() -> None:
    """Let the threads of this process use what others have freed, instead of each holding on to its own.

    For processes with many threads that are mostly idle, such as the API. To be called before these start.
    """
    _mallopt(_M_ARENA_MAX, 1)


def _mallopt(parameter: int, value: int) -> None:
    """Does nothing where the C library is not glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
