"""How much is computed in one batch: models that train side by side, classes that are matched together."""

from __future__ import annotations

import gc

import torch

from mdc_core.config.estimate import items_that_fit
from mdc_core.system.memory import total_bytes


def items_per_batch(item_bytes: float, device: torch.device) -> int:
    """How many items of `item_bytes` bytes fit in one batch on a device, at least 1 (`estimate.items_that_fit`)."""
    return items_that_fit(item_bytes, gpu_free(device))


def device_bytes(device: torch.device) -> int:
    """Total memory in bytes: the GPU's, or what this process may use of the machine's."""
    if device.type != "cuda":
        return total_bytes()
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return memory


def gpu_free(device: torch.device) -> int | None:
    """Free bytes of a GPU, torch's unused cache included; None for other devices."""
    if device.type != "cuda":
        return None
    gc.collect()  # a caught error or an abandoned generator may still hold a whole memory pool
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free
