"""Describe and benchmark this worker's device, as one JSON object.

    python -m worker.machine

It runs in its own process, so that the worker itself never loads torch.
"""

from __future__ import annotations

import dataclasses
import json
import platform

import torch

from mdc_core.compute.batching import device_bytes
from mdc_core.config.presets import NAMED
from mdc_core.config.settings import CondenseConfig, NetworkConfig
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.training.calibrate import calibrate
from server.logs import configure_logging
from server.settings import Settings

SAMPLE = CondenseConfig(network=NetworkConfig(width=64), batch_network=32)
"""A network between the smallest and the largest; the benchmark takes a second or two."""


def main() -> None:
    """Print device, gpu, memory_bytes, flops, bandwidth and start (the fields of `Worker`)."""
    configure_logging()
    keep_freed_memory()
    if threads := Settings().threads:
        torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    machine: dict[str, object] = {
        "device": torch.cuda.get_device_name() if gpu else cpu,
        "gpu": gpu,
        "memory_bytes": device_bytes(device),
        **dataclasses.asdict(calibrate(SAMPLE, NAMED["cifar10"], device)),
    }
    print(json.dumps(machine))


if __name__ == "__main__":
    main()
