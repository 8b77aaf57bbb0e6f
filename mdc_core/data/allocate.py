"""Room for arrays that may be larger than memory."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

from mdc_core import memory


def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of bytes to be filled: in memory where it fits, else mapped from a temporary file without a name.

    Pages of the file are read when they are touched, and dropped when memory is wanted for something else.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if memory.fits(size):
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(prefix="mdc-data-") as file:
        file.truncate(size)
        return np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)  # keeps the file open by itself
