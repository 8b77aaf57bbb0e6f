"""What this worker computes on, and how fast that is, as one JSON object.

    python -m worker.machine

A process of its own, so that the worker itself never loads torch.
"""

from __future__ import annotations

import dataclasses
import json
import platform

import torch

from mdc_core.calibrate import calibrate
from mdc_core.config import CondenseConfig, NetworkConfig
from mdc_core.malloc import keep_freed_memory
from mdc_core.memory import total_bytes
from mdc_core.presets import NAMED
from server.logs import configure_logging
from server.settings import Settings

SAMPLE = CondenseConfig(network=NetworkConfig(width=64), batch_network=32)
"""Between the smallest and the largest networks, and done in a second or two."""


def main() -> None:
    """Measure and print: device, gpu, memory_bytes, flops, bandwidth, start."""
    configure_logging()
    keep_freed_memory()
    if threads := Settings().threads:
        torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    if gpu:
        device, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    else:
        device, memory = f"{platform.machine()} CPU, {torch.get_num_threads()} threads", total_bytes()
    speed = calibrate(SAMPLE, NAMED["cifar10"], "cuda" if gpu else "cpu")
    print(json.dumps({"device": device, "gpu": gpu, "memory_bytes": memory, **dataclasses.asdict(speed)}))


if __name__ == "__main__":
    main()
