"""Predicted against measured: memory and time of training on subset k, as a plan states them.

    python -m benchmarks.cost_model --rounds 5 > cost_model.json

Memory: a fresh process per case loads torch, trains once on two images so that its libraries are in memory, resets
the peak of its resident size, then builds the network, decodes the set and trains three epochs; what is reported is how
far the peak is above what was resident before. Time: in every round and for every case the device's own measure of
FLOP/s (as `mdc-device profile` takes it), then one epoch, all in one process and on one thread; both by CPU time, since
other work on the machine takes wall time from them. Ratios are of measured to predicted; medians over the rounds. As in
`mdc-device train`, the process keeps the memory that it frees.
Linux only. Prints one JSON object, and with --markdown FILE a table as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine, memory_bytes
from mdc_core.compute.streams import stream
from mdc_core.config.settings import EvaluateConfig, NetworkConfig
from mdc_core.data.normalisation import Normalisation
from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget, Plan, plan
from mdc_core.delivery.manifest import Manifest, build_manifest, parse_manifest
from mdc_core.delivery.rankmajor import SetInfo
from mdc_core.networks import build_network
from mdc_core.networks.cost import measure_cost
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.training.batched import fit
from mdc_device import profile
from mdc_device.decode import Subset

NETWORKS = (
    NetworkConfig(width=32),
    NetworkConfig(width=128),
    NetworkConfig(name="resnet_ap", width=32),
)
SIZES = (1, 5, 10)
BATCHES = (16, 64)
INFO = SetInfo(10, 2, tuple(f"class {c}" for c in range(10)), (0.5,) * 3, (0.25,) * 3, 32, 3)
"""Shaped like CIFAR-10 at 10 images per class."""


def main() -> None:
    """Measure both, print what was predicted beside it."""
    args = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    if args.child is not None:
        print(json.dumps(peak_memory(*args.child)))
        return
    cases = list(product(range(len(NETWORKS)), SIZES, BATCHES))
    manifests = [described(network) for network in NETWORKS]
    memory = [memory_line(manifests[case[0]], *case) for case in cases]
    rounds = timed(cases, args.rounds)
    times = [time_line(manifests[case[0]], *case, rounds[case]) for case in cases]
    flops = [rate for measured in rounds.values() for rate, _ in measured]
    print(
        json.dumps(
            {
                "what": "memory and time of training, measured against predicted",
                "machine": machine(),
                "method": {"rounds": args.rounds, "clock": "CPU time", "memory": "peak resident size"},
                "flops_median": statistics.median(flops),
                "flops_spread": [min(flops), max(flops)],
                "memory": memory,
                "time": times,
            },
            indent=1,
        )
    )
    if args.markdown is not None:
        args.markdown.write_text(table(memory, times))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--child", type=int, nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def described(network: NetworkConfig) -> Manifest:
    """A manifest with the cost of this network, counted as a worker does."""
    packed = rankmajor.pack(np.zeros(INFO.tile_shape(INFO.ipc), np.uint8), INFO)
    net = build_network(network, channels=3, image_size=32, classes=10, generator=stream(0, "cost"))
    document = build_manifest(
        name="cost",
        version=1,
        created="2030-01-01T00:00:00Z",
        expires=None,
        info=INFO,
        digests=rankmajor.digests(packed, INFO),
        object_url="/x",
        network=network.model_dump(),
        recipe={"epochs": 1},
        accuracy=[],
        cost={network.label(): measure_cost(net, 3, 32)},
    )
    return parse_manifest(document)


def training(network: int, k: int, batch: int, epochs: int) -> Iterator[int]:
    """The training of `mdc-device train`, on random tiles; yields after every epoch."""
    # By torch: numpy would load its generators, which no training needs.
    tiles = torch.randint(256, INFO.tile_shape(k), generator=stream(k, "tiles"), dtype=torch.uint8)
    subset = Subset(INFO, tiles.numpy(), k)
    images = (torch.from_numpy(subset.images()) - 0.5) / 0.25
    recipe = EvaluateConfig(epochs=epochs, network=NETWORKS[network], batch_size=batch)
    net = build_network(
        NETWORKS[network], channels=3, image_size=32, classes=10, generator=stream(0, "weights")
    )
    labels, pixels = torch.from_numpy(subset.labels()), Normalisation(INFO.mean, INFO.std)
    yield from fit(net, images, labels, pixels, recipe, stream(0, "training"))


def peak_memory(network: int, k: int, batch: int) -> int:
    """Bytes by which this process grows at most while it trains."""
    warm = NetworkConfig(name=NETWORKS[network].name, width=4)
    net = build_network(warm, channels=3, image_size=32, classes=10, generator=stream(0, "warm"))
    recipe = EvaluateConfig(epochs=2, network=warm, batch_size=2)
    images, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    for _ in fit(net, images, labels, Normalisation(INFO.mean, INFO.std), recipe, stream(0, "warm")):
        pass
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_bytes(os.getpid())
    for _ in training(network, k, batch, 3):
        pass
    return memory_bytes(os.getpid(), "VmHWM") - before


def memory_line(manifest: Manifest, network: int, k: int, batch: int) -> dict[str, Any]:
    """One case in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.cost_model", "--child", str(network), str(k), str(batch)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    measured, predicted = json.loads(done.stdout), expected(manifest, k, batch).memory_bytes
    assert predicted is not None
    line = {**case_of(network, k, batch), "predicted": predicted, "measured": measured}
    return told({**line, "ratio": round(measured / predicted, 3)})


def timed(
    cases: list[tuple[int, int, int]], rounds: int
) -> dict[tuple[int, int, int], list[tuple[float, float]]]:
    """Of every case and round the FLOP/s that the device reached just before, and CPU seconds of one epoch."""
    profile.perf_counter = time.process_time  # type: ignore[attr-defined]
    running = {case: training(*case, rounds + 1) for case in cases}
    for epochs in running.values():
        next(epochs)
    measured: dict[tuple[int, int, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, epochs in running.items():
            flops, begun = profile.measure_flops(0.3), time.process_time()
            next(epochs)
            measured[case].append((flops, time.process_time() - begun))
    return measured


def time_line(
    manifest: Manifest, network: int, k: int, batch: int, rounds: list[tuple[float, float]]
) -> dict[str, Any]:
    """One case: the median over the rounds of measured to predicted, each with the FLOP/s of its round."""
    seconds = [taken for _, taken in rounds]
    predicted = [expected(manifest, k, batch, flops).seconds or 0.0 for flops, _ in rounds]
    ratios = sorted(one / other for one, other in zip(seconds, predicted, strict=True))
    line = {
        **case_of(network, k, batch),
        "predicted": round(statistics.median(predicted), 4),
        "measured": round(statistics.median(seconds), 4),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
    }
    return told(line)


def expected(manifest: Manifest, k: int, batch: int, flops: float | None = None) -> Plan:
    """What a plan states for one epoch on subset k."""
    return plan(manifest, Budget(batch_size=batch, epochs=1, flops=flops), at_most=k)


def case_of(network: int, k: int, batch: int) -> dict[str, Any]:
    """The name of a case."""
    return {"network": NETWORKS[network].label(), "k": k, "batch": batch}


def told(line: dict[str, Any]) -> dict[str, Any]:
    """The line, shown meanwhile."""
    print(json.dumps(line), file=sys.stderr, flush=True)
    return line


def table(memory: list[dict[str, Any]], times: list[dict[str, Any]]) -> str:
    """Markdown: a row per case."""
    rows = [
        "| network | k | batch | memory: predicted, measured (MB) | ratio | s per epoch: predicted, measured | ratio |",
        "|-|-|-|-|-|-|-|",
    ]
    for one, other in zip(memory, times, strict=True):
        rows.append(
            f"| {one['network']} | {one['k']} | {one['batch']} "
            f"| {one['predicted'] / 1e6:.1f}, {one['measured'] / 1e6:.1f} | {one['ratio']:.2f} "
            f"| {other['predicted']:.2f}, {other['measured']:.2f} | {other['ratio']:.2f} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
