"""How much is computed at once: models that train side by side, classes that are matched together."""

from __future__ import annotations

import gc

import torch

from mdc_core.config.estimate import items_that_fit
from mdc_core.memory import total_bytes


def items_per_batch(item_bytes: float, device: torch.device) -> int:
    """How many items that hold `size` bytes each are computed as one on a device; see `estimate.items_that_fit`."""
    return items_that_fit(item_bytes, gpu_free(device))


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU, or what this process may use of the machine's."""
    if device.type != "cuda":
        return total_bytes()
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return memory


def gpu_free(device: torch.device) -> int | None:
    """Free bytes of a GPU, with those that torch keeps for later; None for other devices."""
    if device.type != "cuda":
        return None
    gc.collect()  # what an error or a generator has left may hold a whole pool
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free
