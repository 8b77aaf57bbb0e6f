"""What feature matching is made of: a training step of its pool, and an update of the tiles.

    python -m benchmarks.feature_step --ipc 10 --width 128 --precision tf32 --device cuda

Both as a run does them, with all that is drawn for them, on random images of CIFAR-10's shape. Prints one JSON object:
the medians of several stretches in milliseconds, with the least and the most, and why nothing was recorded, if so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import get_args

import torch

from benchmarks.machine import machine
from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.precision import products
from mdc_core.compute.streams import stream
from mdc_core.condensation.condense import prepare, start_state
from mdc_core.condensation.iteration import TileUpdate
from mdc_core.condensation.methods import METHODS
from mdc_core.condensation.network_phase import initial_network
from mdc_core.condensation.pool import MemoryPools
from mdc_core.config.presets import condense_config
from mdc_core.config.settings import CondenseConfig, Precision
from mdc_core.data.real_set import RealSet
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.training.real_training import RealTraining

CLASSES, PER_CLASS = 10, 1000
WARM_UP = 8
"""Updates before the first that counts: a GPU records what it repeats in these."""


def main() -> None:
    """Measure, then print."""
    args = parse()
    keep_freed_memory()
    device = torch.device(args.device)
    real = random_images().to(device)
    settings = {"method": "feature", "ipc": args.ipc, "network": {"width": args.width}, "pool": 1}
    config = condense_config("cifar10", {**settings, "precision": args.precision, "pool_samples": 64})
    recorder = Recorder(device)
    with products(config.precision):
        step = medians(training_of(config, real, recorder, args.steps), args.stretches, args.steps, device)
        update = medians(updating(config, real, recorder, args.updates), args.stretches, args.updates, device)
    print(
        json.dumps(
            {
                "what": "feature matching, milliseconds of a training step of the pool and of an update",
                "sizes": {"ipc": args.ipc, "width": args.width, "batch": config.batch_network},
                "machine": machine(device),
                "precision": config.precision,
                "unrecorded": recorder.refusal,
                "training_step": step,
                "update": update,
            },
            indent=2,
        )
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=128, help="of a stretch")
    parser.add_argument("--updates", type=int, default=20, help="of a stretch")
    parser.add_argument("--stretches", type=int, default=5)
    return parser.parse_args()


def random_images() -> RealSet:
    """Of CIFAR-10's shape and normalisation."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (CLASSES * PER_CLASS, 3, 32, 32), generator=draws, dtype=torch.int64).to(
        torch.uint8
    )
    labels = torch.arange(len(images)) % CLASSES
    return RealSet(images, labels, tuple("0123456789"), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def training_of(config: CondenseConfig, real: RealSet, recorder: Recorder, steps: int) -> Callable[[], None]:
    """So many training steps, after a few to warm up."""
    training = RealTraining(config, real, initial_network(config, real, outer=0), recorder)
    training.begin(stream(config.seed, "order"))
    draws = stream(config.seed, "augmentation")
    training.see(config.batch_network * WARM_UP, draws)
    return lambda: training.see(config.batch_network * steps, draws)


def updating(config: CondenseConfig, real: RealSet, recorder: Recorder, updates: int) -> Callable[[], None]:
    """So many updates, after a few to warm up."""
    pools = MemoryPools()
    list(prepare(config, real, real.device, pools=pools))
    networks = METHODS[config.method].networks(config, real, recorder, pools)
    update = TileUpdate(config, real, networks.net, recorder)
    start = start_state(config, real)
    update.begin(
        start.tiles, start.momentum, start.mls, measured=False, optimiser_state=start.optimiser_state
    )
    count = 0

    def run(times: int = updates) -> None:
        nonlocal count
        for _ in range(times):
            count += 1
            networks.ready(1, count)
            update.run(1, count)

    run(WARM_UP)
    return run


def medians(run: Callable[[], None], stretches: int, count: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of one of `count`, by the clock on the wall: median, least and most of several stretches."""
    taken = []
    for _ in range(stretches):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1000 * (time.perf_counter() - begun) / count)
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}


if __name__ == "__main__":
    main()
