"""Which subset loss is best once every variant has its own step size: accuracy(k) of each, on seeds unseen in tuning.

    python -m benchmarks.subset_losses cifar10.npz --out runs/subset_losses --minutes 120

A variant is a weighting of the subsets' gradient distances, with or without freezing. First the step size of the tiles
is tuned for every variant by itself, on seed 0; then each runs with its best one on the other seeds, which alone make
the table. All runs are otherwise equal. DATA, schedule and evaluation are those of mdc_vs_baseline.py. One process and
one thread per run, --jobs at a time. Every condensation and evaluation is kept under --out, also when it was cut off:
the same command goes on, and no run is begun after --minutes. Prints JSON lines, and a Markdown table last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.mdc_vs_baseline import add_schedule, condensed, judged, settings, with_test_images
from mdc_core.condensation import checkpoint
from mdc_core.condensation.mls import frozen_prefix
from mdc_core.data.load import load
from mdc_core.system.malloc import keep_freed_memory

TUNING_SEED = 0


@dataclass(frozen=True)
class Run:
    """One condensation with its evaluation."""

    variant: str
    scale: float
    """Factor of the preset's step size."""
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        variant = re.sub("[^a-z0-9]+", "-", self.variant.lower())
        return f"{variant}-x{self.scale:g}-seed{self.seed}"


def variants(ipc: int) -> dict[str, dict[str, Any]]:
    """Settings of every variant; the whole set always has the weight 1."""
    sizes = range(1, ipc)
    return {
        "C": {"subset_loss": "none"},
        "MDC": {"subset_loss": "mls"},
        "MDC unfrozen": {"subset_loss": "mls", "freeze": "none"},
        "all, 1 each": {"subset_loss": "all"},
        "all, 1/n": {"subset_loss": "all", "subset_weights": [1 / n for n in sizes]},
        "all, sum 1": {"subset_loss": "all", "subset_weights": [1 / len(sizes)] * len(sizes)},
    }


def main() -> None:
    """Tune, compare, print the table of what is done."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    perform(args, [Run(v, s, TUNING_SEED) for s in args.scales for v in variants(args.ipc)], deadline)
    best = {v: tuned(args, v) for v in variants(args.ipc)}
    if None not in best.values():
        perform(args, [Run(v, s, seed) for seed in args.seeds for v, s in best.items() if s], deadline)
    print(table(args))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="digits", help="named data set, folder, zip or npz")
    parser.add_argument("--out", type=Path, default=Path("runs/subset_losses"), help="folder for results")
    parser.add_argument("--data-root", type=Path, default=Path("mdc-data/datasets"))
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 2.5, 6], help="of the step size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the comparison, not 0")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no run is begun")
    add_schedule(parser)
    args = parser.parse_args()
    if TUNING_SEED in args.seeds:
        parser.error(f"seed {TUNING_SEED} is the one that step sizes are tuned on: compare on others")
    return args


def perform(args: argparse.Namespace, runs: list[Run], deadline: float) -> None:
    """Do what is not done yet, as long as there is time; MDC first, since another run may be equal to it."""
    missing = [run for run in runs if not result_path(args, run).exists()]
    missing.sort(key=lambda run: run.variant != "MDC")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for line in pool.map(perform_one, [args] * len(missing), missing, [deadline] * len(missing)):
            if line is not None:
                print(json.dumps(line), flush=True)


def perform_one(args: argparse.Namespace, run: Run, deadline: float) -> dict[str, Any] | None:
    """Condense, evaluate, keep the result; None when the time is over. In a process of its own."""
    if time.monotonic() > deadline:  # the clock of the machine: all processes read the same
        return None
    if run.variant == "MDC unfrozen" and (line := same_as_mdc(args, run)):
        result_path(args, run).write_text(json.dumps(line))
        return {"run": run.name, "average": average(line), "condense_seconds": 0}
    torch.set_num_threads(1)
    keep_freed_memory()
    data = with_test_images(load(args.data, args.data_root), args.test_images)
    overrides = variants(args.ipc)[run.variant]
    config, recipe = settings(args, data, overrides["subset_loss"], run.seed)
    changes = {**overrides, "lr_base": config.lr_base * run.scale}
    config = type(config).model_validate({**config.model_dump(), **changes})
    state, seconds = condensed(config, data, args.out / f"{run.name}.checkpoint", run.name)
    recipe = recipe.model_copy(update={"random_baseline": False})
    trials = judged(state, data, recipe, run.name)
    line = {
        **dataclasses.asdict(run),
        "condense": config.model_dump(mode="json"),
        "evaluate": recipe.model_dump(mode="json"),
        "machine": machine(),
        "condense_seconds": seconds,
        "test_images": len(data.test.labels),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    result_path(args, run).write_text(json.dumps(line))
    return {"run": run.name, "average": average(line), "condense_seconds": round(seconds, 1)}


def same_as_mdc(args: argparse.Namespace, run: Run) -> dict[str, Any] | None:
    """The result of MDC with the same step size and seed, if that never froze a tile: then nothing differs."""
    sibling = dataclasses.replace(run, variant="MDC")
    saved = args.out / f"{sibling.name}.checkpoint"
    if not (result_path(args, sibling).exists() and saved.exists()):
        return None
    state, config = checkpoint.from_bytes(saved.read_bytes())
    seen = [track.selections for track in state.mls.tracks]
    if any(frozen_prefix(s[:i], config.freeze) for s in seen for i in range(1, len(s) + 1)):
        return None
    return {**json.loads(result_path(args, sibling).read_text()), "variant": run.variant}


def result_path(args: argparse.Namespace, run: Run) -> Path:
    """Where a finished run is kept."""
    path: Path = args.out / f"{run.name}.json"
    return path


def results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every finished run."""
    for path in sorted(args.out.glob("*.json")):
        yield json.loads(path.read_text())


def tuned(args: argparse.Namespace, variant: str) -> float | None:
    """The best scale of a variant on the tuning seed; None while one of them is not done."""
    found = {
        line["scale"]: average(line)
        for line in results(args)
        if line["variant"] == variant and line["seed"] == TUNING_SEED and line["scale"] in args.scales
    }
    return max(found, key=lambda scale: found[scale]) if len(found) == len(args.scales) else None


def average(line: dict[str, Any]) -> float:
    """Mean accuracy over all k and repeats, in per cent."""
    return round(100 * statistics.fmean(trial["accuracy"] for trial in line["trials"]), 3)


def table(args: argparse.Namespace) -> str:
    """Markdown: what tuning found, and the averages of the comparison with their spread over the seeds."""
    lines = list(results(args))
    scales = [f"x{scale:g}" for scale in args.scales]
    rows = [
        "| variant | " + " | ".join(scales) + " | chosen | average over k, other seeds | by k |",
        "|-" * (len(scales) + 4) + "|",
    ]
    for variant in variants(args.ipc):
        own = [line for line in lines if line["variant"] == variant]
        tuning = {line["scale"]: average(line) for line in own if line["seed"] == TUNING_SEED}
        chosen = tuned(args, variant)
        compared = [line for line in own if line["seed"] in args.seeds and line["scale"] == chosen]
        cells = [f"{tuning[scale]:.2f}" if scale in tuning else "" for scale in args.scales]
        cells += ["" if chosen is None else f"x{chosen:g}", spread([average(line) for line in compared])]
        rows.append(f"| {variant} | " + " | ".join([*cells, by_size(compared)]) + " |")
    return "\n".join(rows)


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)} seeds)"


def by_size(lines: list[dict[str, Any]]) -> str:
    """Mean accuracy at every k."""
    found: dict[int, list[float]] = {}
    for line in lines:
        for trial in line["trials"]:
            found.setdefault(trial["k"], []).append(100 * trial["accuracy"])
    return " ".join(f"{statistics.fmean(found[k]):.1f}" for k in sorted(found))


if __name__ == "__main__":
    main()
