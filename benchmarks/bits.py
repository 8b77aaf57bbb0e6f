"""Accuracy(k) of one float32 condensed set as it is, and rounded to 8, 6 and 4 bits per pixel, paired.

    python -m benchmarks.bits cifar10.npz --in seed0-mdc.checkpoint --k 1 3 5 --repeats 3 --epochs 100 --out runs/bits

--in is a checkpoint, or the float32 master that a job keeps; without it the named set `digits` is condensed first. At
every k and repeat all bit depths get the same initial weights, the same order of images and the same augmentation, so
that their difference is that of the rounding. Every training is kept under --out: a run that was cut off continues.
Prints one JSON object, and writes the Markdown table to --out as well. One thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from scipy.stats import t as student

from benchmarks.machine import machine
from benchmarks.mdc_vs_baseline import with_test_images
from mdc_core.condensation import checkpoint
from mdc_core.condensation.condense import condense, result
from mdc_core.config.presets import condense_config, evaluate_config, preset_for
from mdc_core.config.settings import EvaluateConfig, NetworkConfig
from mdc_core.data.load import load
from mdc_core.data.real_set import DataSet
from mdc_core.data.synthetic import SyntheticSet
from mdc_core.errors import FormatError
from mdc_core.training.evaluate import Trial, evaluate

DEPTHS = (32, 8, 6, 4)
"""Bits per value; 32 is the float itself."""


def main() -> None:
    """Train what is missing, then report."""
    args = parse()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    data = with_test_images(load(args.data, args.data_root), args.test_images)
    synthetic, network = condensed(args, data)
    preset = preset_for(data.facts())
    changes: dict[str, Any] = {"epochs": args.epochs, "random_baseline": False, "seed": args.seed}
    if network:
        changes["network"] = network.model_dump()
    info = synthetic.info(data.train)
    recipe = evaluate_config(preset, changes, ipc=info.ipc, factor=info.factor)
    sizes = args.k or recipe.sizes_of(len(synthetic.tiles))
    trials = trained(synthetic, data, recipe, sizes, args)
    report = {
        "what": "accuracy(k) by bits per value",
        "machine": machine(),
        "method": "paired: same weights, order and augmentation at every k and repeat; last epoch",
        "test_images": len(data.test.labels),
        "data": data.name,
        "evaluate": recipe.model_dump(mode="json"),
        "trials": trials,
        "differences": differences(trials),
    }
    (args.out / "table.md").write_text(table(trials, report["differences"]))
    print(json.dumps(report, indent=1))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="digits", help="named data set, folder, zip or npz")
    parser.add_argument("--in", dest="source", type=Path, help="checkpoint or float32 master")
    parser.add_argument("--out", type=Path, default=Path("runs/bits"), help="folder for trainings and table")
    parser.add_argument(
        "--data-root", type=Path, default=Path("mdc-data/datasets"), help="of the named data sets"
    )
    parser.add_argument("--k", type=int, nargs="+", help="sizes; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="networks per k and depth")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--test-images", type=int, help="so many random ones; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    return parser.parse_args()


def condensed(args: argparse.Namespace, data: DataSet) -> tuple[SyntheticSet, NetworkConfig | None]:
    """The float32 set, within [0, 1], and the network that was matched, where the file tells it."""
    if args.source is None:
        config = condense_config(preset_for(data.facts()), {"ipc": 5, "outer_loops": 30})
        *_, last = condense(config, data.train)
        tiles, network = result(last.state, data.train).tiles, config.network
    else:
        content = args.source.read_bytes()
        try:
            state, config = checkpoint.from_bytes(content)
            tiles, network = state.tiles, config.network
        except FormatError:
            tiles, network = load_tensors(content)["tiles"], None
    return SyntheticSet(tiles.clamp(0, 1), data.train.image_size), network


def rounded(synthetic: SyntheticSet, bits: int) -> SyntheticSet:
    """The set with each value rounded to the nearest of 2^bits levels in [0, 1]; 32: as it is."""
    if bits == 32:
        return synthetic
    if bits == 8:
        return synthetic.delivered()  # what devices get
    levels = 2**bits - 1
    return SyntheticSet((synthetic.tiles * levels).round() / levels, synthetic.image_size)


def trained(
    synthetic: SyntheticSet,
    data: DataSet,
    recipe: EvaluateConfig,
    sizes: Sequence[int],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Every training, each kept in trials.json as soon as it is done."""
    path = args.out / "trials.json"
    kept: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    settings = {"epochs": args.epochs, "seed": args.seed, "test_images": len(data.test.labels)}
    for repeat, k, bits in product(range(args.repeats), sizes, DEPTHS):
        key = {"k": k, "repeat": repeat, "bits": bits, **settings}
        if any(key.items() <= trial.items() for trial in kept):
            continue
        begun = time.process_time()
        one = recipe.model_copy(update={"sizes": (k,), "repeats": repeat + 1})
        before = [Trial(k, "condensed", earlier, 0.0, 0.0) for earlier in range(repeat)]
        (trial,) = evaluate(rounded(synthetic, bits), data, one, done=before)
        line = {**key, **dataclasses.asdict(trial), "cpu_seconds": round(time.process_time() - begun, 1)}
        kept.append(line)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(kept, indent=1))
        part.replace(path)
        print(json.dumps(line), file=sys.stderr, flush=True)
    wanted = {(repeat, k) for repeat in range(args.repeats) for k in sizes}
    return [
        trial
        for trial in kept
        if (trial["repeat"], trial["k"]) in wanted and settings.items() <= trial.items()
    ]


def differences(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of every depth minus that of float32, pair by pair, at each k and over all, in percentage points."""
    by_key = {(trial["k"], trial["repeat"], trial["bits"]): 100 * trial["accuracy"] for trial in trials}
    sizes = sorted({trial["k"] for trial in trials})
    lines = []
    for bits, k in product(DEPTHS[1:], [*sizes, None]):
        pairs = [
            value - by_key[size, repeat, 32]
            for (size, repeat, depth), value in by_key.items()
            if depth == bits and k in (None, size)
        ]
        mean = statistics.fmean(pairs)
        half = None
        if len(pairs) > 1:
            half = float(student.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / len(pairs) ** 0.5
        lines.append({"bits": bits, "k": k, "pairs": len(pairs), "mean": mean, "confidence_95": half})
    return lines


def table(trials: list[dict[str, Any]], found: Any) -> str:
    """Markdown: accuracy by k and depth, then the paired differences."""
    sizes = sorted({trial["k"] for trial in trials})
    names = {32: "float32", 8: "8 bits", 6: "6 bits", 4: "4 bits"}
    rows = ["| k | " + " | ".join(names.values()) + " |", "|-" * (len(names) + 1) + "|"]
    for k in sizes:
        cells = []
        for bits in names:
            values = [100 * t["accuracy"] for t in trials if (t["k"], t["bits"]) == (k, bits)]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.2f} ± {spread:.2f}")
        rows.append(f"| {k} | " + " | ".join(cells) + " |")
    rows += ["", "| minus float32 | " + " | ".join(f"k = {k}" for k in sizes) + " | all k |"]
    rows.append("|-" * (len(sizes) + 2) + "|")
    for bits in DEPTHS[1:]:
        cells = [
            f"{line['mean']:+.2f} ± {line['confidence_95'] or 0:.2f}"
            for line in found
            if line["bits"] == bits
        ]
        rows.append(f"| {names[bits]} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
