"""How much memory there is, and what should rather stay on disk. Knows no torch."""

from __future__ import annotations

import os
import tempfile

import numpy as np
from numpy.typing import NDArray

from mdc_core import cgroups
from mdc_core.estimate import DATA_SHARE


def total_bytes() -> int:
    """Memory that this process may use: the machine's, or what its container is limited to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroups.limit_bytes()
    return total if limit is None else min(total, limit)


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
