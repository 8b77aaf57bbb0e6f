"""What networks trained ahead, and more networks for the same updates, are worth per second.

    python benchmarks/early_stage.py cifar10.npz --out runs/early_stage --seeds 0 1 --loops 5 10 20

Accuracy after so many outer loops. All else is equal: the same data, seeds, tile updates and step size; where a network
is matched half as often, an outer loop of the others counts for two. The seconds are processor time of condensing,
training the pool included, with one thread. DATA, schedule and evaluation are those of mdc_vs_baseline.py. Every run is
kept under --out: the same command goes on after one that was cut off. Prints JSON lines, and a Markdown table last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mdc_vs_baseline import add_schedule, judged, settings, with_test_images

from mdc_core.condense import condense
from mdc_core.data import load
from mdc_core.malloc import keep_freed_memory

Line = dict[str, Any]


def variants(args: argparse.Namespace) -> dict[str, Line]:
    """Settings of every variant."""
    pool = {"pool": args.pool, "pool_samples": args.pool_samples}
    return {
        "fresh": {},
        "pool": pool,
        "pool, unchanged": {**pool, "pool_noise": 0.0},
        "pool, not trained on": {**pool, "n_data": 0},
        "fresh, twice as many": {
            "inner_iterations": args.inner // 2,
            "outer_loops": 2 * args.outer,
            "mls_period": 2 * args.period,
        },
    }


def main() -> None:
    """Do what is missing, print the table."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    missing = [
        (args, variant, seed)
        for seed, variant in product(args.seeds, variants(args))
        if not path_of(args, variant, seed).exists()
    ]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as executor:
        for lines in executor.map(run, *zip(*missing, strict=True)) if missing else ():
            for line in lines:
                print(json.dumps({name: line[name] for name in ("variant", "seed", "outer", "seconds")}))
    print(table(args))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="digits", help="named data set, folder, zip or npz")
    parser.add_argument("--out", type=Path, default=Path("runs/early_stage"), help="folder for results")
    parser.add_argument("--data-root", type=Path, default=Path("mdc-data/datasets"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--loops", type=int, nargs="+", default=[5, 10, 20], help="outer loops to judge after"
    )
    parser.add_argument("--pool", type=int, default=10, help="networks trained ahead")
    parser.add_argument("--pool-samples", type=int, default=5000, help="real samples each is trained on")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    add_schedule(parser)
    args = parser.parse_args()
    args.outer = max(args.loops)
    if args.inner % 2:
        parser.error("--inner must be even: one variant matches every network half as often")
    return args


def run(args: argparse.Namespace, variant: str, seed: int) -> list[Line]:
    """Condense once, judge after each of `--loops`. In a process of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    data = with_test_images(load(args.data, args.data_root), args.test_images)
    config, recipe = settings(args, data, "mls", seed)
    config = type(config).model_validate({**config.model_dump(), **variants(args)[variant]})
    recipe = recipe.model_copy(update={"random_baseline": False})
    stops = {loops * config.outer_loops // args.outer: loops for loops in args.loops}
    seconds, begun, lines = 0.0, time.process_time(), []
    for step in condense(config, data.train):
        seconds += time.process_time() - begun
        if step.outer in stops:
            trials = judged(step.state, data, recipe, f"{variant}, seed {seed}, loop {step.outer}")
            lines.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "outer": stops[step.outer],
                    "seconds": round(seconds, 1),
                    "condense": config.model_dump(mode="json"),
                    "evaluate": recipe.model_dump(mode="json"),
                    "test_images": len(data.test.labels),
                    "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
                    "trials": [dataclasses.asdict(trial) for trial in trials],
                }
            )
        begun = time.process_time()
    path_of(args, variant, seed).write_text(json.dumps(lines))
    return lines


def path_of(args: argparse.Namespace, variant: str, seed: int) -> Path:
    """Where a finished run is kept."""
    path: Path = args.out / f"{variant.replace(', ', '-').replace(' ', '-')}-seed{seed}.json"
    return path


def table(args: argparse.Namespace) -> str:
    """Markdown: average accuracy over k in per cent, mean ± sample standard deviation of the seeds, and seconds."""
    rows = [
        "| variant | " + " | ".join(f"{n} loops" for n in args.loops) + " |",
        "|-" * (len(args.loops) + 1) + "|",
    ]
    for variant in variants(args):
        cells = []
        for outer in args.loops:
            lines = [
                line
                for seed in args.seeds
                for line in json.loads(path_of(args, variant, seed).read_text())
                if line["outer"] == outer
            ]
            averages = [100 * statistics.fmean(t["accuracy"] for t in line["trials"]) for line in lines]
            spread = f" ± {statistics.stdev(averages):.2f}" if len(averages) > 1 else ""
            taken = statistics.fmean(line["seconds"] for line in lines)
            cells.append(f"{statistics.fmean(averages):.2f}{spread} ({taken:.0f} s)")
        rows.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
