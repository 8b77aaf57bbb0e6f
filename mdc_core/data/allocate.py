"""Allocate arrays that may be larger than memory."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

from mdc_core.system import memory


def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An uninitialised array of bytes: in memory if it fits, else mapped from an unnamed temporary file.

    The system reads pages of the file when they are touched, and drops them when memory is needed.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if memory.fits(size):
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(prefix="mdc-data-") as file:
        file.truncate(size)
        return np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)  # the mapping keeps the file open
