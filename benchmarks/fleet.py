"""Bytes that a fleet of devices fetches when budgets change: ranks that are missing, against whole files.

    python -m benchmarks.fleet --over-http 100 > fleet.json

Every device draws a budget (storage, memory, deadline, energy) again and again, plans its k from the manifest with the
function that devices and the server use, and holds exactly subset k from then on. Three ways to get there are counted:

- `ranks`: grow by one range of the ranks that are missing, shrink by cutting the file (what `mdc-device` does);
- `whole`: download the file of subset k whenever k changes;
- `cached`: one file per size, each downloaded once and kept for ever, however much storage that takes.

The first --over-http devices do it for real: fetch, grow and shrink of `mdc_device.api` against an API process on this
machine. The bytes that arrive there must equal those of the plans, or the run fails. All ways fetch the manifest once
per download. The set is shaped like CIFAR-10 at 10 images per class. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.published import publish
from benchmarks.serve_subset import SMALL, api
from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget, convnet_cost, plan
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import BudgetError
from mdc_device import api as device

USUAL: dict[str, Any] = {
    "network": {"name": "convnet", "depth": 3, "width": 128},
    "recipe": {"epochs": 300, "batch_size": 64},
    "cost": {"convnet-d3-w128": convnet_cost(3, 128, SMALL.channels, SMALL.image_size, len(SMALL.classes))},
}
"""The usual training. Without measurements of accuracy the largest affordable k is taken."""


@dataclass
class Spent:
    """Bytes of one device by each way, manifests included, and the storage that each way needs."""

    ranks: int = 0
    whole: int = 0
    cached: int = 0
    changes: int = 0
    """How often k changed after the first fetch."""
    cached_sizes: set[int] = field(default_factory=set)
    largest: int = 0


def main() -> None:
    """Publish a set, let the fleet live, print what it fetched."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        key, _ = publish(work / "data", {"fleet": SMALL}, **USUAL)
        with api(work) as (_, url):
            access = device.Access(key)
            device.fetch(url, "fleet", work / "probe", k=1, access=access)
            text = (work / "probe.manifest.json").read_bytes()
            manifest, _ = device.plan(manifest=work / "probe.manifest.json")
            begun = time.monotonic()
            fleet = []
            for number in range(args.devices):
                sizes = life(manifest, random.Random(f"{args.seed} {number}"), args.changes)
                spent = counted(manifest, sizes, len(text))
                if number < args.over_http:
                    lived = over_http(url, access, work / "held", sizes, len(text))
                    if lived != spent.ranks:
                        raise SystemExit(
                            f"device {number} received {lived} bytes, but its plans say {spent.ranks}"
                        )
                fleet.append(spent)
            seconds = time.monotonic() - begun
    print(json.dumps(report(args, manifest, fleet, seconds), indent=1))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--changes", type=int, default=20, help="budgets per device after the first")
    parser.add_argument("--over-http", type=int, default=25, help="devices that fetch for real")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def life(manifest: Manifest, draw: random.Random, changes: int) -> list[int]:
    """k after every budget that afforded any: speed and power are the device's, the rest is drawn anew each time."""
    flops, watts = 10 ** draw.uniform(9, 11), draw.uniform(1, 20)
    whole = plan(manifest, Budget(flops=flops))
    assert whole.seconds is not None
    found = []
    for _ in range(changes + 1):
        # Three limits, each of which by itself would afford between a tenth of the set and twice of it.
        seconds = whole.seconds * draw.uniform(0.1, 2)
        budget = Budget(
            storage_bytes=math.ceil(whole.total_bytes * draw.uniform(0.1, 2)),
            memory_bytes=math.ceil(10 ** draw.uniform(7.5, 9.5)),
            seconds=seconds,
            flops=flops,
            watts=watts,
            joules=whole.seconds * watts * draw.uniform(0.1, 2),
        )
        try:
            found.append(plan(manifest, budget).k)
        except BudgetError:
            continue  # no training now; what is held stays
    return found


def counted(manifest: Manifest, sizes: list[int], manifest_bytes: int) -> Spent:
    """What every way fetches for this series of k, by the ranges of the plans."""
    spent, held = Spent(), 0
    for k in sizes:
        if k == held:
            continue
        delta = plan(manifest, Budget(have_k=held), at_most=k).delta_bytes
        size = rankmajor.subset_size(manifest.info, k)
        spent.ranks += delta + manifest_bytes if delta else 0
        spent.whole += size + manifest_bytes
        spent.cached += 0 if k in spent.cached_sizes else size + manifest_bytes
        spent.cached_sizes.add(k)
        spent.largest = max(spent.largest, size)
        spent.changes += held > 0
        held = k
    return spent


def over_http(url: str, access: device.Access, file: Path, sizes: list[int], manifest_bytes: int) -> int:
    """Bytes that the real client receives for this series of k; every file on the way is verified by it."""
    received, held = 0, 0
    for k in sizes:
        if held == 0:
            received += (
                device.fetch(url, "fleet", file, k=k, access=access)[2].received_bytes + manifest_bytes
            )
        elif k > held:
            received += device.grow(file, k, access=access).received_bytes + manifest_bytes
        elif k < held and not device.shrink(file, k).verified:
            raise SystemExit(f"{file} is damaged after shrinking to {k}")
        held = k
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    return received


def report(
    args: argparse.Namespace, manifest: Manifest, fleet: list[Spent], seconds: float
) -> dict[str, Any]:
    """Totals, ratios, and their spread over the devices."""
    total = {way: sum(getattr(spent, way) for spent in fleet) for way in ("ranks", "whole", "cached")}
    kept = [sum(rankmajor.subset_size(manifest.info, k) for k in spent.cached_sizes) for spent in fleet]
    return {
        "what": "bytes that a fleet fetches",
        "machine": machine(),
        "method": {
            **vars(args),
            "rank_bytes": manifest.info.rank_bytes,
            "header_bytes": rankmajor.header_size(manifest.info),
            "ipc": manifest.info.ipc,
            "bytes": "bodies of the answers, manifests included; equal on the wire for the devices over HTTP",
        },
        "changes_of_k": sum(spent.changes for spent in fleet),
        "bytes": total,
        "bytes_per_device_median": {
            way: statistics.median(getattr(spent, way) for spent in fleet) for way in total
        },
        "ratio": {f"ranks/{way}": round(total["ranks"] / total[way], 3) for way in ("whole", "cached")},
        "ratio_by_device_quartiles": {
            f"ranks/{way}": [
                round(value, 3)
                for value in statistics.quantiles(
                    (s.ranks / getattr(s, way) for s in fleet if getattr(s, way)), n=4
                )
            ]
            for way in ("whole", "cached")
        },
        "storage_per_device_median": {
            "ranks": statistics.median(spent.largest for spent in fleet),
            "cached": statistics.median(kept),
        },
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
