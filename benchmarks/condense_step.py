"""One inner iteration: the engine against the literal per-class update that the tests keep, in one process.

    python -m benchmarks.condense_step --ipc 10 --width 128 --selected 9 --pairs 7

Both compute the same numbers on fresh random images of CIFAR-10's shape, the literal update with torch's own layers;
they alternate, after a warm-up, and every ratio is of two neighbours. On a CPU the time is that of the process, which
others on the machine disturb less than the clock on the wall. Prints one JSON object: medians and spread of the
ratios, where the engine's time goes by part and by operator, and how far the two results are apart, class by class.
In float32 that is below 1e-6, unless rounding puts one activation on the other side of 0 in one of them: then to 1e-2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Collection, Hashable
from operator import itemgetter
from typing import get_args

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import machine
from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.precision import products
from mdc_core.compute.streams import stream
from mdc_core.condensation.condense import CondenseState, start_state
from mdc_core.condensation.gradient_matching import gradient_sum
from mdc_core.condensation.iteration import TileUpdate, classes_per_batch, loss_weights
from mdc_core.condensation.mls import MlsState, Track
from mdc_core.condensation.network_phase import NetworkPhase
from mdc_core.config.settings import CondenseConfig, NetworkConfig, Precision
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.training import augment
from mdc_core.training.steps import Steps, draw_steps
from tests.core.literal import literal_match, literal_network, literal_training

WARM_UP = 5
"""Rounds before the first that counts: a GPU records what it repeats in these."""

PROFILES = 6
"""Calls that are profiled, of which the fastest counts."""


def main() -> None:
    """Measure, then print."""
    args = parse()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config = CondenseConfig(
        ipc=args.ipc,
        network=NetworkConfig(width=args.width),
        n_data=args.n_data,
        batch_real=args.batch_real,
        precision=args.precision,
    )
    # So many that no batch of an epoch is cut short: both sides then take the same number of steps.
    per_class = 64 * -(-config.ipc * config.factor**2 // 64) + 64
    real = random_images(per_class).to(device)
    start = start_state(config, real)
    state = MlsState((Track((args.selected,)),))
    recorder = Recorder(device)
    phase = NetworkPhase(config, real, recorder)
    update = TileUpdate(config, real, phase.net, recorder)
    phase.reset(1)
    weights = {name: value.clone() for name, value in phase.net.state_dict().items()}
    plain = literal_network(phase.net)
    per_batch = classes_per_batch(config, real)

    def engine(inner: int) -> Tensor:
        """The tile gradient: what the momentum, which was zero, has become."""
        update.begin(start.tiles, start.momentum, state, measured=False)
        update.run(1, inner)
        return update.momentum

    def literal(inner: int) -> Tensor:
        return literal_iteration(config, real, plain, start.tiles, args.selected, inner)

    def literal_phase(inner: int) -> None:
        blocks = [real_steps(config, real, inner).map(lambda t: t.to(device))]
        literal_training(plain, real.prepare(real.images), real.labels, blocks)

    with products(config.precision):
        apart = by_class(engine(0) - literal(0)) / by_class(literal(0))
        real_batch = torch.randn(10, config.batch_real, 3, 32, 32, device=device)
        tiles = torch.randn(10, config.ipc * config.factor**2, 3, 32, 32, device=device)
        real_part = recorder.recorded(
            lambda: first_order(phase.net, real_batch, per_batch, graph=False), ["real part"]
        )
        tile_part = recorder.recorded(
            lambda: first_order(phase.net, tiles, per_batch, graph=True), ["tile part"]
        )
        runs: dict[str, Callable[[int], object]] = {
            "engine": engine,
            "literal": literal,
            "network": lambda inner: phase.train(config.n_data, inner),
            "literal network": literal_phase,
            "real": lambda _: real_part(),
            "synthetic": lambda _: tile_part(),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for pair in range(-WARM_UP, args.pairs):
            phase.net.load_state_dict(weights)
            # The same layers in the same order, under other names.
            plain.load_state_dict(dict(zip(plain.state_dict(), weights.values(), strict=True)))
            for name, run in runs.items():
                taken = timed(run, pair + WARM_UP, device)
                if pair >= 0:
                    seconds[name].append(taken)
        measured = report(args, seconds, apart, recorder.refusal)
        measured["operators"] = operators(config, real, start, state)
    print(json.dumps(measured, indent=2))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--width", type=int, default=32, help="channels of the ConvNet-D3; published: 128")
    parser.add_argument(
        "--selected", type=int, default=9, help="n*, the size of the subset in the loss, below ipc"
    )
    parser.add_argument("--batch-real", type=int, default=64)
    parser.add_argument(
        "--n-data", type=int, default=512, help="samples per network training; published: 2000"
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of the engine")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    args = parser.parse_args()
    if not 1 <= args.selected < args.ipc:
        parser.error(f"--selected is {args.selected}, but n* is 1 to {args.ipc - 1} at ipc {args.ipc}")
    return args


def random_images(per_class: int) -> RealSet:
    """Ten classes of noise, 3x32x32."""
    generator = stream(time.time_ns(), "images")
    images = torch.randint(0, 256, (10 * per_class, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(10).repeat_interleave(per_class)
    return RealSet(images, labels, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)


def by_class(gradient: Tensor) -> Tensor:
    """Norm of each class's part, (C,), of a tile gradient (N, C, f², ch, s, s)."""
    return gradient.square().transpose(0, 1).flatten(1).sum(1).sqrt()


def literal_iteration(
    config: CondenseConfig, real: RealSet, net: Network, tiles: Tensor, selected: int, inner: int
) -> Tensor:
    """The tile gradient of all classes, one class and one subset after the other, with the engine's draws."""
    draws = stream(config.seed, "match", 1, inner)
    params = augment.draw(
        config.augment, 1, batches=10, normalisation=real.normalisation, image_size=32, generator=draws
    )
    grads = []
    for label, positions in enumerate(real.class_index()):
        order = torch.randperm(len(positions), generator=draws)[: config.batch_real]
        own = params.rows(torch.tensor([label])).map(lambda t: t.to(tiles.device))

        def view(images: Tensor, own: augment.AugmentParams = own) -> Tensor:
            return augment.apply(own, real.normalise(images))

        batch, weights = real.floats(positions[order]), loss_weights(config, selected)
        grads.append(literal_match(net, tiles[:, label], batch, label, view, weights, 0, config.metric)[1])
    return torch.stack(grads, dim=1)


def real_steps(config: CondenseConfig, real: RealSet, inner: int) -> Steps:
    """Steps as the network phase draws them, on real images at random."""
    generator = stream(0, "literal", inner)
    chosen = torch.randperm(len(real.labels), generator=generator)[: config.n_data]
    batches = torch.split(chosen, config.batch_network)
    return draw_steps(
        batches,
        config.batch_network,
        ops=config.network_augment(),
        cutmix=config.cutmix,
        normalisation=real.normalisation,
        image_size=32,
        lr=torch.full((len(batches),), config.lr_network),
        generator=generator,
    )


def first_order(net: Network, images: Tensor, per_batch: int, *, graph: bool) -> None:
    """The gradients of the matched weights for all classes."""
    labels = torch.arange(10, device=images.device)
    for some, own in zip(images.split(per_batch), labels.split(per_batch), strict=True):
        gradient_sum(net, some.detach().requires_grad_(), own, [images.shape[1]], graph=graph)


class Unrecorded(Recorder):
    """Starts every kernel by itself: a graph hides its operators. They are the same kernels."""

    def recorded(
        self, run: Callable[..., None], shapes: Collection[Hashable], *args: object
    ) -> Callable[[], None]:
        """`run` itself."""
        return lambda: run(*args)


def operators(
    config: CondenseConfig, real: RealSet, start: CondenseState, state: MlsState
) -> dict[str, dict[str, float]]:
    """Milliseconds of the device in matching all classes and in one training step, by operator, the largest twelve.

    The fastest of several calls: the first ones wait for new pages of memory, some of them the profiler's.
    """
    recorder = Unrecorded(real.device)
    phase = NetworkPhase(config, real, recorder)
    update = TileUpdate(config, real, phase.net, recorder)
    phase.reset(1)
    update.begin(start.tiles, start.momentum, state, measured=False)
    calls: dict[str, Callable[[int], None]] = {
        "matching": lambda inner: update.run(1, inner),
        "training step": lambda inner: phase.train(config.batch_network, inner),
    }
    return {
        name: min(
            (profiled(call, inner, real.device) for inner in range(1, PROFILES + 1)), key=itemgetter("all")
        )
        for name, call in calls.items()
    }


def profiled(call: Callable[[int], None], inner: int, device: torch.device) -> dict[str, float]:
    """Milliseconds by operator, and of all together."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        call(inner)
        if gpu:
            torch.cuda.synchronize(device)
    taken = {
        event.key: (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1000
        for event in profiler.key_averages()
        if event.device_type.name == "CPU"
    }
    largest = sorted(taken.items(), key=lambda item: -item[1])[:12]
    return {"all": round(sum(taken.values()), 3), **{name: round(value, 3) for name, value in largest}}


def timed(run: Callable[[int], object], inner: int, device: torch.device) -> float:
    """Seconds of one call: of the process on a CPU, else on the wall, the device's queue included."""
    if device.type == "cpu":
        begun = time.process_time()
        run(inner)
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    run(inner)
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def report(
    args: argparse.Namespace, seconds: dict[str, list[float]], apart: Tensor, unrecorded: str | None
) -> dict[str, object]:
    """Ratios of neighbours, and the share of each part in the engine's iteration."""
    rows = list(
        zip(*(seconds[name] for name in ("literal", "engine", "literal network", "network")), strict=True)
    )
    parts = {name: statistics.median(values) for name, values in seconds.items()}
    whole = parts["engine"] + parts["network"]
    shares = {
        "real gradients": parts["real"],
        "synthetic gradients": parts["synthetic"],
        "second derivative and the rest of matching": parts["engine"] - parts["real"] - parts["synthetic"],
        "network": parts["network"],
    }
    return {
        "what": "inner iteration, engine against the literal per-class update",
        "sizes": {name: getattr(args, name) for name in ("ipc", "width", "selected", "batch_real", "n_data")},
        "machine": machine(args.device),
        "precision": f"engine {args.precision}, literal float32" if args.device == "cpu" else args.precision,
        "unrecorded": unrecorded,
        "pairs": args.pairs,
        "relative_difference_by_class": spread(apart.tolist()),
        "matching_speedup": spread([literal / engine for literal, engine, _, _ in rows]),
        "network_speedup": spread([plain / network for _, _, plain, network in rows]),
        "iteration_speedup": spread([(row[0] + row[2]) / (row[1] + row[3]) for row in rows]),
        "median_seconds": parts,
        "share_of_iteration": {name: part / whole for name, part in shares.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
