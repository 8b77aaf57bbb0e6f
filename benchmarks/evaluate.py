"""A whole evaluation: as many trainings at once as pay, against one after the other, in one process.

    python -m benchmarks.evaluate --shape digits --width 32 --ipc 10 --repeats 3 --epochs 10
    python -m benchmarks.evaluate --shape cifar10 --width 128 --device cuda --epochs 1000 --pairs 1

Both train the same networks, from the same weights and draws, on a random set and on k random images per class, and
test each four times. They alternate, after a warm-up, and every ratio is of two neighbours; the time is that of the
clock on the wall. Prints one JSON object: medians and spread of seconds and ratios, how many trainings were at once,
and the largest difference between the accuracies that the two found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import get_args

import torch

from benchmarks.machine import machine
from mdc_core.compute.batching import items_per_batch
from mdc_core.compute.streams import stream
from mdc_core.config.estimate import training_bytes
from mdc_core.config.settings import CondenseConfig, EvaluateConfig, NetworkConfig, Precision
from mdc_core.data.real_set import DataSet, RealSet
from mdc_core.data.synthetic import SyntheticSet, initial_tiles
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.training.evaluate import Trial, evaluate

SHAPES = {"digits": (1, 8, 2, 1), "cifar10": (3, 32, 3, 2)}
"""Channels, image side, depth of the network, and f."""
CLASSES = 10


def main() -> None:
    """Measure, then print."""
    args = parse()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = recipe_of(args, args.epochs, args.repeats)
    data, synthetic = random_set(args)
    short = recipe_of(args, min(8, args.epochs), 1)
    for models_per_batch in (None, 1):
        trained(synthetic, data, short, args.device, models_per_batch)
    rows = []
    for pair in range(args.pairs):
        data, synthetic = random_set(args, pair)
        together, seconds = trained(synthetic, data, recipe, args.device, None)
        alone, seconds_alone = trained(synthetic, data, recipe, args.device, 1)
        apart = max(abs(together[key] - alone[key]) for key in together.keys() | alone.keys())
        rows.append((seconds, seconds_alone, apart))
    print(json.dumps(report(args, recipe, data, rows), indent=2))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="digits", help="of the random images")
    parser.add_argument("--width", type=int, default=32, help="channels of the ConvNet; published: 128")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="networks per size")
    parser.add_argument("--epochs", type=int, default=10, help="of each training; published: 1000")
    parser.add_argument("--test-images", type=int, default=360)
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    return parser.parse_args()


def recipe_of(args: argparse.Namespace, epochs: int, repeats: int) -> EvaluateConfig:
    """What is evaluated: every size from 1 to N, and random images beside it."""
    network = NetworkConfig(depth=SHAPES[args.shape][2], width=args.width)
    return EvaluateConfig(
        epochs=epochs, repeats=repeats, network=network, precision=args.precision, shrunk_baseline=False
    )


def random_set(args: argparse.Namespace, seed: int = 0) -> tuple[DataSet, SyntheticSet]:
    """Classes that can be learned, each of them noise around an image of its own, and a set of such images."""
    channels, side, _, factor = SHAPES[args.shape]
    generator = stream(seed, "images")
    centres = torch.rand(CLASSES, 1, channels, side, side, generator=generator)

    def split(per_class: int) -> RealSet:
        noise = torch.randn(CLASSES, per_class, channels, side, side, generator=generator)
        images = ((centres + 0.3 * noise).clamp(0, 1) * 255).to(torch.uint8).flatten(0, 1)
        labels = torch.arange(CLASSES).repeat_interleave(per_class)
        return RealSet(images, labels, tuple("0123456789"), (0.5,) * channels, (0.25,) * channels)

    data = DataSet("noise", split(args.ipc * factor**2), split(max(1, args.test_images // CLASSES)))
    tiles = initial_tiles(CondenseConfig(ipc=args.ipc, factor=factor), data.train)
    return data, SyntheticSet(tiles, side)


def trained(
    synthetic: SyntheticSet, data: DataSet, recipe: EvaluateConfig, device: str, models_per_batch: int | None
) -> tuple[dict[tuple[int, str, int], float], float]:
    """Accuracy of every training, and the seconds that all of them took."""
    begun = time.perf_counter()
    trials: list[Trial] = list(evaluate(synthetic, data, recipe, device, models_per_batch=models_per_batch))
    seconds = time.perf_counter() - begun  # the last test has waited for the device
    return {(trial.k, trial.source, trial.repeat): trial.accuracy for trial in trials}, seconds


def report(
    args: argparse.Namespace, recipe: EvaluateConfig, data: DataSet, rows: list[tuple[float, float, float]]
) -> dict[str, object]:
    """Medians and spread over the pairs."""
    channels, side, depth, factor = SHAPES[args.shape]
    device = torch.device(args.device)
    images = (CLASSES, recipe.batch_size, CLASSES * args.ipc * factor**2)
    return {
        "what": "an evaluation, as many trainings at once as pay against one after the other",
        "sizes": {
            "image": [channels, side, side],
            "network": f"convnet, depth {depth}, width {args.width}",
            **{name: getattr(args, name) for name in ("ipc", "repeats", "epochs", "test_images")},
            "trainings": recipe.trainings(args.ipc, factor),
        },
        "machine": machine(device),
        "precision": args.precision,
        "warm_up": "one shorter evaluation each",
        "pairs": args.pairs,
        "models_per_batch_by_images": {
            count: items_per_batch(training_bytes(recipe, data.facts(), count), device)
            for count in sorted(set(images))
        },
        "largest_accuracy_difference": max(apart for _, _, apart in rows),
        "seconds_batched": spread([together for together, _, _ in rows]),
        "seconds_one_by_one": spread([alone for _, alone, _ in rows]),
        "ratio": spread([alone / together for together, alone, _ in rows]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
