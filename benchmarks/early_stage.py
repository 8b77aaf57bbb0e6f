"""What networks trained ahead, and more networks for the same updates, are worth per second.

    python -m benchmarks.early_stage cifar10.npz --out runs/early_stage --loops 5 10 20 --scales 6 15 40

Accuracy after so many outer loops. As in subset_losses.py the step size of the tiles is tuned for every variant by
itself, on seed 0, and the best ones are compared on the other seeds. All else is equal: the same data, seeds and tile
updates; where a network is matched half as often, an outer loop of the others counts for two. The seconds are processor
time of condensing, training the pool included, with one thread. DATA, schedule and evaluation are those of
mdc_vs_baseline.py. Every run is kept under --out: the same command goes on after one that was cut off. Prints JSON
lines, and a Markdown table last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.mdc_vs_baseline import add_schedule, judged, settings, with_test_images
from benchmarks.subset_losses import TUNING_SEED, Run, average, result_path, spread
from mdc_core.condensation.condense import condense
from mdc_core.data.load import load
from mdc_core.system.malloc import keep_freed_memory

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
    """Tune, compare, print the table."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    perform(args, [Run(v, scale, TUNING_SEED) for scale in args.scales for v in variants(args)])
    best = {v: tuned(args, v) for v in variants(args)}
    perform(args, [Run(v, scale, seed) for seed in args.seeds for v, scale in best.items()])
    print(table(args))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="digits", help="named data set, folder, zip or npz")
    parser.add_argument("--out", type=Path, default=Path("runs/early_stage"), help="folder for results")
    parser.add_argument("--data-root", type=Path, default=Path("mdc-data/datasets"))
    parser.add_argument("--scales", type=float, nargs="+", default=[6, 15, 40], help="of the step size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of the comparison, not 0")
    parser.add_argument(
        "--loops", type=int, nargs="+", default=[5, 10, 20], help="outer loops to judge after"
    )
    parser.add_argument("--pool", type=int, default=10, help="networks trained ahead")
    parser.add_argument("--pool-samples", type=int, default=5000, help="real samples each is trained on")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    add_schedule(parser)
    args = parser.parse_args()
    args.loops = sorted(set(args.loops))
    args.outer = args.loops[-1]
    if TUNING_SEED in args.seeds:
        parser.error(f"seed {TUNING_SEED} is the one that step sizes are tuned on: compare on others")
    if args.inner % 2:
        parser.error("--inner must be even: one variant matches every network half as often")
    return args


def perform(args: argparse.Namespace, runs: list[Run]) -> None:
    """Do what is not done yet."""
    missing = [run for run in runs if not result_path(args, run).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for lines in pool.map(perform_one, [args] * len(missing), missing):
            for line in lines:
                told = {name: line[name] for name in ("variant", "scale", "seed", "loops", "seconds")}
                print(json.dumps({**told, "average": average(line)}), flush=True)


def perform_one(args: argparse.Namespace, run: Run) -> list[Line]:
    """Condense once, judge after each of `--loops`. In a process of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    data = with_test_images(load(args.data, args.data_root), args.test_images)
    config, recipe = settings(args, data, "mls", run.seed)
    changes = {**variants(args)[run.variant], "lr_base": config.lr_base * run.scale}
    config = type(config).model_validate({**config.model_dump(), **changes})
    recipe = recipe.model_copy(update={"random_baseline": False})
    stops = {loops * config.outer_loops // args.outer: loops for loops in args.loops}
    seconds, begun, lines = 0.0, time.process_time(), []
    for step in condense(config, data.train):
        seconds += time.process_time() - begun
        if step.outer in stops:
            trials = judged(step.state, data, recipe, f"{run}, loop {step.outer}")
            lines.append(
                {
                    **dataclasses.asdict(run),
                    "loops": stops[step.outer],
                    "seconds": round(seconds, 1),
                    "condense": config.model_dump(mode="json"),
                    "evaluate": recipe.model_dump(mode="json"),
                    "test_images": len(data.test.labels),
                    "machine": machine(),
                    "trials": [dataclasses.asdict(trial) for trial in trials],
                }
            )
        begun = time.process_time()
    result_path(args, run).write_text(json.dumps(lines))
    return lines


def lines_of(args: argparse.Namespace, run: Run) -> list[Line]:
    """What a finished run has found after each of `--loops`."""
    kept: list[Line] = json.loads(result_path(args, run).read_text())
    if [line["loops"] for line in kept] != args.loops:
        raise SystemExit(f"{result_path(args, run)} is of other --loops than {args.loops}: use another --out")
    return kept


def tuned(args: argparse.Namespace, variant: str) -> float:
    """The best scale on the tuning seed, after the most loops."""
    found: float = max(
        args.scales, key=lambda scale: average(lines_of(args, Run(variant, scale, TUNING_SEED))[-1])
    )
    return found


def table(args: argparse.Namespace) -> str:
    """Markdown: what tuning found, and by loops the average over k of the other seeds, with the seconds."""
    names = [*(f"x{scale:g}" for scale in args.scales), "chosen", *(f"{n} loops" for n in args.loops)]
    rows = ["| variant | " + " | ".join(names) + " |", "|-" * (len(names) + 1) + "|"]
    for variant in variants(args):
        tuning = [lines_of(args, Run(variant, scale, TUNING_SEED))[-1] for scale in args.scales]
        best = tuned(args, variant)
        cells = [*(f"{average(line):.2f}" for line in tuning), f"x{best:g}"]
        for lines in zip(*(lines_of(args, Run(variant, best, seed)) for seed in args.seeds), strict=True):
            taken = statistics.fmean(line["seconds"] for line in lines)
            cells.append(f"{spread([average(line) for line in lines])}, {taken:.0f} s")
        rows.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
