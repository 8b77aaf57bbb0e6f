"""Accuracy(k) at equal processor time: feature matching over every prefix beside the best tuned gradient matching.

    python -m benchmarks.quality cifar10.npz --ipc 5 --seconds 300 --jobs 2

A variant is a method with its settings and a share of the time. Every run has one thread, a process of its own and so
many processor seconds, the pool's training included, and stops after the outer loop in which they end. Sets are judged
as they are delivered, every k by as many training steps, on networks and draws that condensing has not seen. Test
images are read for nothing else. The seeds are others than the one that settings were tuned on (0). Each set and each
result is kept under --out, and what is there is not repeated. --judges adds networks of other kinds, which no set was
condensed with. Prints JSON lines, and a Markdown table per kind last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.mdc_vs_baseline import with_test_images
from mdc_cli.pools import FolderPools
from mdc_core.condensation.condense import CondenseState, condense, prepare, result
from mdc_core.config.presets import condense_config, evaluate_config, preset_for
from mdc_core.config.settings import CondenseConfig, EvaluateConfig, NetworkConfig
from mdc_core.data.load import load
from mdc_core.data.real_set import DataSet
from mdc_core.data.synthetic import SyntheticSet
from mdc_core.delivery import rankmajor
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.training.evaluate import evaluate

TUNING_SEED = 0
ENDLESS = 100_000


@dataclass(frozen=True)
class Variant:
    """Settings, and what they get of the time."""

    settings: Mapping[str, Any]
    share: float = 1.0
    """Of --seconds."""
    pool_is_there: bool = False
    """Whether the networks of another variant's pool serve, whose time does not count."""


def variants(ipc: int) -> dict[str, Variant]:
    """By name. Gradient matching has the weights and the step size that docs/results/subset_losses.md found best."""
    gradient = {
        "method": "idc",
        "outer_loops": ENDLESS,
        "inner_iterations": 10,
        "n_data": 500,
        "subset_loss": "all",
        "subset_weights": [1 / n for n in range(1, ipc)],
        "lr_base": 15 * 5e-3,
    }
    feature = {"method": "feature"}
    return {
        "gradient": Variant(gradient),
        "feature": Variant(feature),
        "feature, a third": Variant({**feature, "outer_loops": 10, "pool_samples": 20_000}, share=1 / 3),
        "feature, pool there": Variant({**feature, "outer_loops": 15}, share=1 / 5, pool_is_there=True),
    }


def main() -> None:
    """Do what is missing, then print the table."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    args.kinds = [matched(args), *args.judges]
    runs = [(name, seed) for seed in args.seeds for name in args.variants]
    missing = [run for run in runs if not all(path_of(args, *run, judge).exists() for judge in args.kinds)]
    missing.sort(key=lambda run: variants(args.ipc)[run[0]].pool_is_there)  # last: by then it is
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for lines in pool.map(perform, [args] * len(missing), *zip(*missing, strict=True)) if missing else ():
            for line in lines:
                print(json.dumps(line), flush=True)
    for judge in args.kinds:
        print(f"\nNetworks: {judge.label()}\n\n{table(args, judge)}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="named data set, folder, zip or npz")
    parser.add_argument("--data-root", type=Path, default=Path("mdc-data/datasets"))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder for results and pools")
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3, 5], help="sizes to evaluate")
    parser.add_argument("--seconds", type=float, default=300.0, help="processor time of a condensation")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="not 0, which tuning has seen"
    )
    parser.add_argument("--variants", nargs="+", default=list(variants(2)), choices=list(variants(2)))
    parser.add_argument("--steps", type=int, default=1000, help="training steps of an evaluation")
    parser.add_argument("--repeats", type=int, default=2, help="networks per size")
    parser.add_argument(
        "--judges",
        type=network,
        nargs="+",
        default=[],
        metavar="NAME:DEPTH:WIDTH",
        help="further networks, such as resnet_ap:4:16 (whose depth is fixed) and convnet:2:48",
    )
    parser.add_argument("--test-images", type=int, default=2000, help="so many random ones")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    if TUNING_SEED in args.seeds:
        parser.error(f"seed {TUNING_SEED} is the one that settings were tuned on: compare on others")
    return args


def network(text: str) -> NetworkConfig:
    """From `name:depth:width`."""
    name, depth, width = text.split(":")
    return NetworkConfig.model_validate({"name": name, "depth": int(depth), "width": int(width)})


def matched(args: argparse.Namespace) -> NetworkConfig:
    """The network that sets are condensed with."""
    preset = preset_for(load(args.data, args.data_root).facts())
    return condense_config(preset, {"network": {"width": args.width}}).network


def path_of(args: argparse.Namespace, name: str, seed: int, judge: NetworkConfig | None = None) -> Path:
    """Where a result is kept; without `judge`, or with the matched network, that of the run itself."""
    words = name.replace(",", "").replace(" ", "-")
    by = f"-by-{judge.label()}" if judge is not None and judge in args.judges else ""
    path: Path = args.out / f"ipc{args.ipc}-{words}-seed{seed}{by}.json"
    return path


def perform(args: argparse.Namespace, name: str, seed: int) -> list[dict[str, Any]]:
    """Condense and evaluate what is missing of a run, and keep it."""
    torch.set_num_threads(1)
    keep_freed_memory()
    variant = variants(args.ipc)[name]
    data = with_test_images(load(args.data, args.data_root), args.test_images)
    preset, common = preset_for(data.facts()), {"ipc": args.ipc, "network": {"width": args.width}}
    config = condense_config(preset, {**common, **variant.settings, "seed": seed})
    path, told = path_of(args, name, seed), []
    kept = path.with_suffix(".mdc")
    if not path.exists():
        state, seconds = condensed(args, config, data, variant, seed)
        found = result(state, data.train)
        kept.write_bytes(rankmajor.pack(found.quantised().numpy(), found.info(data.train)))
    elif not kept.exists():
        raise SystemExit(f"{path} is there without its set, {kept.name}: remove it to condense once more")
    info, tiles = rankmajor.read(kept.read_bytes())
    delivered = SyntheticSet(torch.tensor(tiles) / 255, info.image_size)
    for judge in args.kinds:
        judged_path = path_of(args, name, seed, judge)
        if judged_path.exists():
            continue
        judging = {"network": judge.model_dump(), "repeats": args.repeats, "random_baseline": False}
        recipe = evaluate_config(preset, {**judging, "seed": 1000 + seed}, ipc=args.ipc, factor=config.factor)
        line: dict[str, Any] = {"variant": name, "seed": seed, "ipc": args.ipc}
        if judged_path == path:
            line |= {
                "condense": config.model_dump(mode="json"),
                "outer_loops_done": state.outer,
                "seconds": seconds,
            }
        line |= {
            "evaluate": recipe.model_dump(mode="json"),
            "machine": machine(),
            "test_images": len(data.test.labels),
            "trials": list(judged(args, delivered, data, recipe)),
        }
        judged_path.write_text(json.dumps(line))
        told.append({"variant": name, "seed": seed, "judge": judge.label(), "accuracy": by_size([line])})
    return told


def condensed(
    args: argparse.Namespace, config: CondenseConfig, data: DataSet, variant: Variant, seed: int
) -> tuple[CondenseState, dict[str, float]]:
    """What is there when the time is over, and the processor seconds of both phases."""
    # Runs of a pool that is there share one folder with the run that trained it; all others have their own.
    pools = FolderPools(args.out / "pools" / f"{config.pool_samples}-seed{seed}")
    begun = time.process_time()
    for _ in prepare(config, data.train, pools=pools):
        pass
    trained = time.process_time()
    left = variant.share * args.seconds - (0 if variant.pool_is_there else trained - begun)
    state = None
    for step in condense(config, data.train, pools=pools):
        state = step.state
        if time.process_time() - trained > left:
            break
    assert state is not None
    return state, {"pool": trained - begun, "condense": time.process_time() - trained}


def judged(
    args: argparse.Namespace, delivered: SyntheticSet, data: DataSet, recipe: EvaluateConfig
) -> Iterator[dict[str, Any]]:
    """Every training of every k, of --steps steps and the rest of an epoch."""
    for k in args.k:
        images = len(delivered.subset(k).labels())
        epochs = -(-args.steps // -(-images // recipe.batch_size))
        changes = {"sizes": (k,), "epochs": epochs}
        for trial in evaluate(delivered, data, recipe.model_copy(update=changes)):
            yield dataclasses.asdict(trial)


def table(args: argparse.Namespace, judge: NetworkConfig) -> str:
    """Markdown: a row per variant, mean accuracy in per cent at every k, and the average with its spread over seeds."""
    rows = [
        "| variant | processor seconds: pool, condensing | "
        + " | ".join(f"k={k}" for k in args.k)
        + " | average over k |",
        "|-" * (len(args.k) + 3) + "|",
    ]
    for name in args.variants:
        done = [seed for seed in args.seeds if path_of(args, name, seed, judge).exists()]
        if not done:
            continue
        runs = [json.loads(path_of(args, name, seed).read_text()) for seed in done]
        lines = [json.loads(path_of(args, name, seed, judge).read_text()) for seed in done]
        seconds = [
            f"{statistics.fmean(run['seconds'][phase] for run in runs):.0f}" for phase in ("pool", "condense")
        ]
        averages = [statistics.fmean(by_size([line]).values()) for line in lines]
        spread = f" ± {statistics.stdev(averages):.2f}" if len(averages) > 1 else ""
        cells = [", ".join(seconds), *(f"{value:.1f}" for value in by_size(lines).values())]
        cells.append(f"{statistics.fmean(averages):.2f}{spread} ({len(lines)} seeds)")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def by_size(lines: list[dict[str, Any]]) -> dict[int, float]:
    """Mean accuracy in per cent at every k."""
    found: dict[int, list[float]] = {}
    for line in lines:
        for trial in line["trials"]:
            found.setdefault(trial["k"], []).append(100 * trial["accuracy"])
    return {k: round(statistics.fmean(found[k]), 2) for k in sorted(found)}


if __name__ == "__main__":
    main()
