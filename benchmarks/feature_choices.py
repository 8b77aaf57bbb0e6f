"""What feature matching is made of, one choice changed at a time: losses, weights, calibration, first images, steps.

    python -m benchmarks.feature_choices cifar10.npz --out runs/choices --seeds 1 2 3 --pools runs/quality/pools

Everything else is the default. All runs of a seed look through the same pool, which is trained once, and make as many
updates. Alternatives that the library does not have are written here. Evaluations are those of benchmarks.quality,
with fewer steps and networks. Each result is kept under --out as JSON, and a run that is there is not repeated.
Prints JSON lines, and a Markdown table last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from benchmarks.mdc_vs_baseline import with_test_images
from benchmarks.quality import by_size, judged
from mdc_cli.pools import FolderPools
from mdc_core.compute.streams import stream
from mdc_core.condensation import condense as loop
from mdc_core.condensation import feature_matching
from mdc_core.condensation.condense import CondenseState, condense, prepare, result
from mdc_core.condensation.gradient_matching import Match, RankGroups, constants
from mdc_core.condensation.interpolation import Interpolation
from mdc_core.condensation.methods import METHODS, Method
from mdc_core.condensation.network_phase import initial_network
from mdc_core.condensation.pool import PoolStore, from_bytes, member_key
from mdc_core.config.presets import condense_config, evaluate_config, preset_for
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.load import load
from mdc_core.data.real_set import RealSet
from mdc_core.data.synthetic import shrink
from mdc_core.system.malloc import keep_freed_memory

FREQUENCIES = 256
CANDIDATES = 500
"""Images of a class among which the first ones are chosen."""


@dataclass(frozen=True)
class Choice:
    """One change."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    method: Callable[[Method], Method] = lambda method: method
    """Makes another method record of the default's."""
    first: Callable[[Tensor, int], list[int]] | None = None
    """Of features (M, D) of a class's images, and a count: which images tiles begin with, in order; None: random."""
    then: Mapping[str, Any] | None = None
    """Gradient matching afterwards, with these settings."""


def last_block(method: Method) -> Method:
    """Distances of the last block alone."""
    of_blocks = feature_matching._distance

    def of_the_last(features: list[Tensor], real: list[Tensor], rank_groups: RankGroups) -> Tensor:
        return of_blocks(features[-1:], real[-1:], rank_groups)

    def match(*given: Any) -> Match:
        with mock.patch.object(feature_matching, "_distance", of_the_last):
            return method.match(*given)

    return dataclasses.replace(method, match=match)


def characteristic(method: Method) -> Method:
    """Characteristic functions at random frequencies in place of means, amplitude and phase alike (NCFM, CVPR 2025)."""

    def match(*given: Any) -> Match:
        config, net, images, real_images, labels, rank_groups, _ = given
        assert isinstance(net, Interpolation)
        leaf = images.detach().requires_grad_()
        classes, ranks, per_image = images.shape[:3]
        with torch.no_grad():
            truths = net.interpolated.block_outputs(real_images.flatten(0, 1))
        outputs = net.interpolated.block_outputs(leaf.flatten(0, 2))
        loss = leaf.new_zeros(classes)
        for output, truth in zip(outputs, truths, strict=True):
            features = output.view(classes, ranks * per_image, -1)
            real = truth.view(classes, real_images.shape[1], -1)
            loss = loss + characteristic_distance(features, real, per_image, rank_groups)
        wrong = config.calibration * feature_matching._cross_entropy(
            net.trained, leaf, labels, 0, config.calibration_decay
        )
        (gradient,) = torch.autograd.grad((loss + wrong).sum(), leaf)
        return Match((loss + wrong).detach(), gradient, leaf.new_zeros(classes, ranks), {})

    return dataclasses.replace(method, match=match)


def characteristic_distance(
    features: Tensor, real: Tensor, per_image: int, rank_groups: RankGroups
) -> Tensor:
    """The weighted mean (K,) of the prefixes' distances, of features (K, N·f², D) and (K, B, D).

    In units of what one random image has, as `match_features` has them.
    """
    spread = real.var(1, correction=1).sum(1).clamp_min(1e-6).sqrt()[:, None, None]
    frequencies = torch.randn(FREQUENCIES, features.shape[2]) / spread
    wave, truth = (
        torch.exp(1j * torch.einsum("knd,kfd->knf", part, frequencies.expand(len(part), -1, -1)))
        for part in (features, real)
    )
    target = truth.mean(1, keepdim=True)
    counts = torch.arange(1, wave.shape[1] + 1)[None, :, None]
    prefixes = (wave.cumsum(1) / counts)[:, per_image - 1 :: per_image]
    distances = (prefixes - target).abs().square().mean(2)  # (K, N)
    weights = dict(rank_groups.weights)
    shares = constants(
        [weights.get(n, 0.0) / sum(weights.values()) for n in range(1, distances.shape[1] + 1)], features
    )
    unit = (1 - target.abs().square()).mean((1, 2))
    return (distances * shares).sum(1) / unit


def falling(method: Method) -> Method:
    """A step size that falls to nothing, linearly over the run."""

    def step(config: CondenseConfig, side: int, now: Any, gradient: Tensor, free: Tensor) -> Any:
        moved = method.step(config, side, now, gradient, free)
        share = 1 - now["updates"] / (config.outer_loops * config.inner_iterations)
        return {**moved, "tiles": torch.lerp(now["tiles"], moved["tiles"], share)}

    return dataclasses.replace(method, step=step)


def nearest(features: Tensor, count: int) -> list[int]:
    """The images nearest to the class mean, nearest first."""
    distance = (features - features.mean(0)).square().sum(1)
    return distance.argsort()[:count].tolist()


def herding(features: Tensor, count: int) -> list[int]:
    """Greedily, so that every prefix's mean is near the class mean (arXiv 1611.07725)."""
    chosen: list[int] = []
    total, mean = torch.zeros_like(features[0]), features.mean(0)
    for size in range(1, count + 1):
        distance = ((total + features) / size - mean).square().sum(1)
        distance[chosen] = float("inf")
        chosen.append(int(distance.argmin()))
        total = total + features[chosen[-1]]
    return chosen


def k_means(features: Tensor, count: int) -> list[int]:
    """The images nearest to the centres of so many clusters, the largest cluster first (DREAM, ICCV 2023)."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=1, random_state=0).fit(features.numpy())
    centres = torch.from_numpy(found.cluster_centers_)
    sizes = torch.bincount(torch.from_numpy(found.labels_).long(), minlength=count)
    closest = torch.cdist(centres, features).argmin(1)
    return closest[sizes.argsort(descending=True)].tolist()


def choices(ipc: int) -> dict[str, Choice]:
    """By name; the first is the default."""
    sizes = range(1, ipc)
    return {
        "default": Choice(),
        "last block alone": Choice(method=last_block),
        "characteristic function": Choice(method=characteristic),
        "no calibration": Choice({"calibration": 0.0}),
        "calibration 0.1 / rank": Choice({"calibration_decay": 1.0}),
        "equal weights": Choice({"subset_weights": [1.0 for _ in sizes]}),
        "weights n": Choice({"subset_weights": [n / ipc for n in sizes]}),
        "the whole set alone": Choice({"subset_loss": "none"}),
        "most learnable subset, frozen": Choice({"subset_loss": "mls"}),
        "most learnable subset": Choice({"subset_loss": "mls", "freeze": "none"}),
        "real batch 256": Choice({"batch_real": 256}),
        "step size falls": Choice(method=falling),
        "step size 0.02, falls": Choice({"lr_base": 0.02}, method=falling),
        "first images: nearest to the mean": Choice(first=nearest),
        "first images: herding": Choice(first=herding),
        "first images: k-means": Choice(first=k_means),
        "twice the updates": Choice({"outer_loops": 30}),
        "gradient matching to finish": Choice(
            then={
                "method": "idc",
                "outer_loops": 8,
                "inner_iterations": 10,
                "n_data": 500,
                "subset_loss": "all",
                "subset_weights": [1 / n for n in sizes],
                "lr_base": 15 * 5e-3,
            }
        ),
    }


def main() -> None:
    """Do what is missing, then print the table."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [(name, seed) for seed in args.seeds for name in args.choices]
    missing = [run for run in runs if not path_of(args, *run).exists()]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for line in pool.map(perform, [args] * len(missing), *zip(*missing, strict=True)) if missing else ():
            print(json.dumps(line), flush=True)
    print(table(args))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="named data set, folder, zip or npz")
    parser.add_argument("--data-root", type=Path, default=Path("mdc-data/datasets"))
    parser.add_argument("--out", type=Path, default=Path("runs/choices"), help="folder for results")
    parser.add_argument("--pools", type=Path, help="folder for pools; left out: in --out")
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=["width=32", "outer_loops=15"], metavar="NAME=VALUE")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3, 5], help="sizes to evaluate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--choices", nargs="+", default=list(choices(2)), choices=list(choices(2)))
    parser.add_argument("--steps", type=int, default=500, help="training steps of an evaluation")
    parser.add_argument("--repeats", type=int, default=1, help="networks per size")
    parser.add_argument("--test-images", type=int, default=2000, help="so many random ones")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    args.pools = args.pools or args.out / "pools"
    return args


def path_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a result is kept."""
    words = "-".join(name.replace(",", "").replace(":", "").replace("/", "by").split())
    path: Path = args.out / f"ipc{args.ipc}-{words}-seed{seed}.json"
    return path


def perform(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Condense, evaluate and keep the result."""
    torch.set_num_threads(1)
    keep_freed_memory()
    choice = choices(args.ipc)[name]
    data = with_test_images(load(args.data, args.data_root), args.test_images)
    given: dict[str, Any] = {}
    for text in args.set:
        key, value = text.split("=")
        if key in ("width", "depth"):
            given.setdefault("network", {})[key] = int(value)
        else:
            given[key] = json.loads(value)
    preset = preset_for(data.facts())
    settings = {"method": "feature", "ipc": args.ipc, **given, **choice.settings, "seed": seed}
    config = condense_config(preset, settings)
    pools = FolderPools(args.pools / f"{config.pool_samples}-seed{seed}")
    for _ in prepare(config, data.train, pools=pools):
        pass
    begun = time.process_time()
    state = condensed(config, choice, data.train, pools, preset, given)
    seconds = time.process_time() - begun
    judging = {"network": config.network.model_dump(), "repeats": args.repeats, "random_baseline": False}
    recipe = evaluate_config(preset, {**judging, "seed": 1000 + seed}, ipc=args.ipc, factor=config.factor)
    line = {
        "choice": name,
        "seed": seed,
        "condense": config.model_dump(mode="json"),
        "evaluate": recipe.model_dump(mode="json"),
        "seconds": seconds,
        "trials": list(judged(args, result(state, data.train).delivered(), data, recipe)),
    }
    path_of(args, name, seed).write_text(json.dumps(line))
    return {"choice": name, "seed": seed, "seconds": seconds, "accuracy": by_size([line])}


def condensed(
    config: CondenseConfig,
    choice: Choice,
    real: RealSet,
    pools: PoolStore,
    preset: str,
    given: Mapping[str, Any],
) -> CondenseState:
    """The last state."""
    start = loop.start_state(config, real)
    if choice.first is not None:
        start = dataclasses.replace(start, tiles=first_tiles(config, choice.first, real, pools))
    start = dataclasses.replace(start, data=real.fingerprint())
    state = start
    with mock.patch.dict(cast(dict[str, Method], METHODS), feature=choice.method(METHODS["feature"])):
        for step in condense(config, real, resume=start, pools=pools):
            state = step.state
    if choice.then is None:
        return state
    later = condense_config(
        preset, {"ipc": config.ipc, "network": given.get("network", {}), **choice.then, "seed": config.seed}
    )
    begin = dataclasses.replace(loop.start_state(later, real), tiles=state.tiles, data=real.fingerprint())
    for step in condense(later, real, resume=begin):
        state = step.state
    return state


def first_tiles(
    config: CondenseConfig, chosen: Callable[[Tensor, int], list[int]], real: RealSet, pools: PoolStore
) -> Tensor:
    """Tiles (N, C, f², ch, s, s) from chosen images, by features of the pool's first network."""
    net = initial_network(config, real, outer=0)
    stored = pools.get(member_key(config, real, 0))
    assert stored is not None
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
    for parameter, weight in zip(net.parameters(), from_bytes(stored, shapes).values(), strict=True):
        parameter.data.copy_(weight)
    side, count = config.tile_side(real.image_size), config.ipc * config.factor**2
    classes = []
    for label, positions in enumerate(real.class_index()):
        order = torch.randperm(len(positions), generator=stream(config.seed, "init", label))[:CANDIDATES]
        images = real.floats(positions[order])
        with torch.no_grad():
            features = net.features(real.normalise(images)).flatten(1)
        found = images[chosen(features, count)]
        classes.append(shrink(found, side).view(config.ipc, config.factor**2, real.channels, side, side))
    return torch.stack(classes, dim=1).contiguous()


def table(args: argparse.Namespace) -> str:
    """Markdown: a row per choice, accuracy in per cent, and how far its average is above the default's by seed."""
    head = " | ".join(f"k={k}" for k in args.k)
    rows = [
        f"| choice | seconds | {head} | average over k | above the default, by seed |",
        "|-" * (len(args.k) + 4) + "|",
    ]
    averages: dict[str, dict[int, float]] = {}
    for name in args.choices:
        paths = {seed: path_of(args, name, seed) for seed in args.seeds}
        lines = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
        if not lines:
            continue
        averages[name] = {seed: statistics.fmean(by_size([line]).values()) for seed, line in lines.items()}
        base = averages.get("default", {})
        above = [f"{value - base[seed]:+.1f}" for seed, value in averages[name].items() if seed in base]
        cells = [f"{statistics.fmean(line['seconds'] for line in lines.values()):.0f}"]
        cells += [f"{value:.1f}" for value in by_size(list(lines.values())).values()]
        rows.append(
            f"| {name} | "
            + " | ".join(cells)
            + f" | {statistics.fmean(averages[name].values()):.1f} | {' '.join(above)} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
