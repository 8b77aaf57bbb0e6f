"""How much memory there is, and what should rather stay on disk. Knows no torch."""

from __future__ import annotations

import ctypes
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdc_core.estimate import DATA_SHARE

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_LARGEST_THRESHOLD = 32 * 2**20
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total_bytes() -> int:
    """Memory that this process may use: the machine's, or what its container is limited to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such limit, or "max"
            total = min(total, int(Path(path).read_text()))
    return total


def fits(size: int) -> bool:
    """Whether data of `size` bytes should be held in memory: half of it at most."""
    return size <= DATA_SHARE * total_bytes()


def room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of bytes to be filled: in memory where it fits, else mapped from a temporary file that has no name.

    Pages of the file are read when they are touched, and dropped when memory is wanted for something else.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if fits(size):
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(prefix="mdc-data-") as file:
        file.truncate(size)
        return np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)  # keeps the file open by itself


def keep_freed_memory() -> None:
    """Let this process keep what tensors leave, instead of giving it back and being handed zeroed pages again.

    For processes that compute on the CPU: every layer's output would otherwise be mapped anew.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
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
