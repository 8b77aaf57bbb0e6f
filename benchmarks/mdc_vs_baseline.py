"""Accuracy(k) of MDC, of Baseline C (the same run without subset loss) and of random real images, same seeds.

    python -m benchmarks.mdc_vs_baseline cifar10.npz --out runs/cifar10 --seeds 0 1

DATA is what `mdc condense` takes: a named data set, a folder, a zip or an npz. The schedule is far shorter than the
published one, so that a laptop finishes it; the comparison is fair because all else is equal. Every condensation and
every evaluation is kept under --out: a run that was cut off continues. One process and one thread per seed.
Prints JSON lines while it works, and a Markdown table last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
from pathlib import Path

import torch

from benchmarks.machine import machine
from mdc_core.condensation import checkpoint
from mdc_core.condensation.condense import CondenseState, condense, result
from mdc_core.config.presets import condense_config, evaluate_config, preset_for
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from mdc_core.data.load import load
from mdc_core.data.real_set import DataSet
from mdc_core.training.evaluate import Trial, evaluate

METHODS = {"MDC": "mls", "Baseline C": "none"}


def main() -> None:
    """Run every seed in a process of its own, then print the table."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run_seed, args=(args, seed)) for seed in args.seeds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a seed failed: see above")
    print(table([json.loads(path.read_text()) for path in sorted(args.out.glob("seed*-*.json"))]))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="digits", help="named data set, folder, zip or npz")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/mdc_vs_baseline"), help="folder for checkpoints and results"
    )
    parser.add_argument(
        "--data-root", type=Path, default=Path("mdc-data/datasets"), help="of the named data sets"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    add_schedule(parser)
    return parser.parse_args()


def add_schedule(parser: argparse.ArgumentParser) -> None:
    """What `settings` reads from the command line: size, schedule and evaluation."""
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--width", type=int, default=32, help="channels of the ConvNet-D3")
    parser.add_argument("--outer", type=int, default=20, help="outer loops T")
    parser.add_argument("--inner", type=int, default=20, help="inner iterations E")
    parser.add_argument("--period", type=int, default=4, help="MLS period")
    parser.add_argument("--n-data", type=int, default=500, help="real samples per network training")
    parser.add_argument("--epochs", type=int, default=200, help="of an evaluation")
    parser.add_argument("--repeats", type=int, default=2, help="evaluations per set and k")
    parser.add_argument("--test-images", type=int, help="so many random ones; default: all")


def with_test_images(data: DataSet, count: int | None) -> DataSet:
    """The data set with that many of its test images, always the same random ones; None: with all."""
    if count is None or count >= len(data.test.labels):
        return data
    chosen = torch.randperm(len(data.test.labels), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(data, test=data.test.subset(chosen[:count]))


def run_seed(args: argparse.Namespace, seed: int) -> None:
    """Condense with both methods and judge both sets and random images, skipping what is done already."""
    torch.set_num_threads(1)
    data = with_test_images(load(args.data, args.data_root), args.test_images)
    for method, subset_loss in METHODS.items():
        name = f"seed{seed}-{method.replace(' ', '-').lower()}"
        target = args.out / f"{name}.json"
        if target.exists():
            continue
        config, recipe = settings(args, data, subset_loss, seed)
        state, seconds = condensed(config, data, args.out / f"{name}.checkpoint", name)
        trials = judged(state, data, recipe, name)
        line = {
            "what": "accuracy(k)",
            "method": method,
            "seed": seed,
            "condense": config.model_dump(mode="json"),
            "evaluate": recipe.model_dump(mode="json"),
            "machine": machine(),
            "condense_seconds": seconds,
            "test_images": len(data.test.labels),
            "mls": state.mls.tracks[0].selections,
            "trials": [dataclasses.asdict(trial) for trial in trials],
        }
        target.write_text(json.dumps(line))
        print(
            json.dumps({key: value for key, value in line.items() if key not in {"trials", "condense"}}),
            flush=True,
        )


def settings(
    args: argparse.Namespace, data: DataSet, subset_loss: str, seed: int
) -> tuple[CondenseConfig, EvaluateConfig]:
    """The preset of the data, shortened as the command line says."""
    preset = preset_for(data.facts())
    network = {"width": args.width}
    config = condense_config(
        preset,
        {
            "ipc": args.ipc,
            "network": network,
            "outer_loops": args.outer,
            "inner_iterations": args.inner,
            "mls_period": args.period,
            "n_data": args.n_data,
            "subset_loss": subset_loss,
            "seed": seed,
        },
    )
    recipe = evaluate_config(
        preset,
        {
            "network": network,
            "epochs": args.epochs,
            "repeats": args.repeats,
            "seed": seed,
            "random_baseline": subset_loss == "mls",
            "shrunk_baseline": False,
        },
        ipc=config.ipc,
        factor=config.factor,
    )
    return config, recipe


def condensed(config: CondenseConfig, data: DataSet, path: Path, name: str) -> tuple[CondenseState, float]:
    """The finished state; goes on from the checkpoint at `path` when there is one. Seconds are of this call."""
    state = checkpoint.resume(path.read_bytes(), config) if path.exists() else None
    begun = time.perf_counter()
    for step in condense(config, data.train, resume=state):
        state = step.state
        path.write_bytes(checkpoint.to_bytes(state, config))
        print(
            f"{name}: outer loop {step.outer}/{step.total}, loss {step.loss:.3f}, MLS {step.selected()}",
            flush=True,
        )
    assert state is not None
    return state, time.perf_counter() - begun


def judged(state: CondenseState, data: DataSet, recipe: EvaluateConfig, name: str) -> list[Trial]:
    """Every training of the evaluation, on the set as it is delivered."""
    trials = []
    for trial in evaluate(result(state, data.train).delivered(), data, recipe):
        trials.append(trial)
        print(f"{name}: k={trial.k} {trial.source} {100 * trial.accuracy:.2f} %", flush=True)
    return trials


def table(results: list[dict[str, object]]) -> str:
    """Markdown: a row per k, mean ± sample standard deviation over all seeds and repeats, in per cent."""
    columns: dict[str, dict[int, list[float]]] = {name: {} for name in (*METHODS, "Random")}
    for line in results:
        for trial in line["trials"]:  # type: ignore[attr-defined]
            column = "Random" if trial["source"] == "random" else str(line["method"])
            columns[column].setdefault(trial["k"], []).append(100 * trial["accuracy"])
    rows = ["| k | " + " | ".join(columns) + " |", "|-" * (len(columns) + 1) + "|"]
    for k in sorted(columns["MDC"]):
        cells = [f"{statistics.fmean(c[k]):.2f} ± {statistics.stdev(c[k]):.2f}" for c in columns.values()]
        rows.append(f"| {k} | " + " | ".join(cells) + " |")
    means = [statistics.fmean(statistics.fmean(values) for values in c.values()) for c in columns.values()]
    rows.append("| average | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
