"""How much is computed at once: models that train side by side, classes that are matched together."""

from __future__ import annotations

import torch

from mdc_core.estimate import AT_ONCE_BYTES, DATA_SHARE, fitting


def how_many(size: float, device: torch.device) -> int:
    """How many of what holds `size` bytes are computed as one.

    On a GPU all that fit into half of its free memory. On a CPU those that are small even together: what is saved
    there is the time that starting an operation takes.
    """
    gpu = device.type == "cuda"
    room = DATA_SHARE * torch.cuda.mem_get_info(device)[0] if gpu else AT_ONCE_BYTES
    return fitting(size, room)
