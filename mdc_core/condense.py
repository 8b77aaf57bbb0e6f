"""The outer and inner loops of Multisize Dataset Condensation (arXiv 2403.06075, Algorithm 1), as an iterator.

Callers checkpoint, report and cancel *between* the steps that it yields; there are no callbacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mdc_core import mls
from mdc_core.config import CondenseConfig, EvaluateConfig
from mdc_core.data import RealSet
from mdc_core.errors import ConfigError
from mdc_core.iteration import frozen_ranks, match_classes, subset_distances
from mdc_core.mls import MlsState
from mdc_core.networks import Network, build_network
from mdc_core.splits import hold_out
from mdc_core.streams import stream
from mdc_core.synthetic import SyntheticSet, initial_tiles
from mdc_core.train import Sgd, class_accuracy, fit, shuffled, train_samples

Distances = tuple[tuple[float, ...], ...]
"""F(1..N-1), a row per MLS track."""


@dataclass(frozen=True)
class CondenseState:
    """All that a run needs to go on; randomness follows from the seed and the loop numbers."""

    outer: int
    """Outer loops done."""
    tiles: Tensor
    """(N, C, f², ch, s, s) float32."""
    momentum: Tensor
    """Of the tiles, the same shape."""
    mls: MlsState
    data: str
    """Fingerprint of the real images; a run goes on with the same ones only."""


@dataclass(frozen=True)
class Step:
    """One outer loop that is done."""

    outer: int
    """t, 1-based."""
    total: int
    """T."""
    loss: float
    """Matching loss: summed over classes, averaged over the E iterations."""
    distances: Distances | None
    """When this loop measured them."""
    state: CondenseState
    seconds: float
    """Wall time of this loop."""

    def selected(self) -> tuple[int, ...]:
        """n* of every MLS track, as it holds from the next loop on."""
        return tuple(track.selected for track in self.state.mls.tracks)


def start_state(config: CondenseConfig, real: RealSet) -> CondenseState:
    """The state before the first loop, on the device of `real`."""
    tiles = initial_tiles(config, real)
    momentum = torch.zeros_like(tiles)
    return CondenseState(0, tiles, momentum, mls.start(config, real.num_classes), real.fingerprint())


def condense(
    config: CondenseConfig,
    real: RealSet,
    device: torch.device | str = "cpu",
    resume: CondenseState | None = None,
) -> Iterator[Step]:
    """Condense `real`; yields after every outer loop, the last one holding the result.

    A run resumed from any yielded state equals the uninterrupted one, bit for bit on the CPU.

    Raises:
        ConfigError: at the first step, when the configuration is impossible on this data, or `resume` is of other
            data; later, when the run diverges.
    """
    config.check_data(real.facts("the data set"))
    real = real.to(torch.device(device))
    fingerprint = real.fingerprint()  # of all images, before any are held out
    if resume is not None and resume.data != fingerprint:
        raise ConfigError(
            "the checkpoint was made from other images: resume with the data set it was made from"
        )
    holdout = real
    if config.uses_mls and config.subset_metric == "accuracy":
        kept, held = hold_out(real.labels.cpu(), real.classes)
        real, holdout = real.subset(kept.to(device)), real.subset(held.to(device))
    state = resume or start_state(config, real)
    state = replace(state, tiles=state.tiles.to(device), momentum=state.momentum.to(device), data=fingerprint)
    for outer in range(state.outer + 1, config.outer_loops + 1):
        begun = time.perf_counter()
        state, loss, distances = _outer_loop(config, real, holdout, state, outer)
        yield Step(outer, config.outer_loops, loss, distances, state, time.perf_counter() - begun)


def result(state: CondenseState, real: RealSet) -> SyntheticSet:
    """The synthetic set of a state."""
    return SyntheticSet(state.tiles, real.image_size)


def _outer_loop(
    config: CondenseConfig, real: RealSet, holdout: RealSet, state: CondenseState, outer: int
) -> tuple[CondenseState, float, Distances | None]:
    """Match one fresh network for E iterations, then do the MLS bookkeeping."""
    free = _free_tiles(config, state)
    tiles = torch.where(free, state.tiles.clamp(0, 1), state.tiles)
    momentum = state.momentum
    theta = _Theta.fresh(config, real, outer)
    theta.train(config.early * len(real.labels), inner=0)
    lr = config.tile_lr(real.image_size)
    measured = mls.is_measured(config, outer)
    loss = torch.zeros((), device=tiles.device)
    measures = []
    for inner in range(1, config.inner_iterations + 1):
        matched = match_classes(config, real, theta.net, tiles, state.mls, outer, inner, measured)
        momentum = torch.where(free, config.momentum * momentum + matched.gradient, 0.0)
        tiles = tiles - lr * momentum
        loss += torch.stack([match.loss for match in matched.classes]).sum()
        if measured:
            measures.append(subset_distances(config, matched.classes))
        if inner < config.inner_iterations:  # after the last update the network is not used any more
            theta.train(config.n_data, inner)
    average = float(loss) / config.inner_iterations
    if not (math.isfinite(average) and bool(tiles.isfinite().all())):
        raise ConfigError(
            f"the run diverged in outer loop {outer} (loss {average}): lower lr_base, which is {config.lr_base}"
        )
    if not measured:
        return replace(state, outer=outer, tiles=tiles, momentum=momentum), average, None
    if config.subset_metric == "accuracy":
        measures = [_subset_accuracies(config, real, holdout, tiles, outer)]
    distances = _by_track(config, measures)
    chosen = mls.advance(state.mls, distances)
    return replace(state, outer=outer, tiles=tiles, momentum=momentum, mls=chosen), average, distances


@dataclass(frozen=True)
class _Theta:
    """The network of one outer loop, and its training on real data, whose epochs go on from call to call."""

    config: CondenseConfig
    real: RealSet
    outer: int
    net: Network
    optimiser: Sgd
    batches: Iterator[Tensor]

    @classmethod
    def fresh(cls, config: CondenseConfig, real: RealSet, outer: int) -> _Theta:
        """New weights, a new order of the images."""
        net = _fresh_network(config, real, outer)
        batches = shuffled(len(real.labels), config.batch_network, stream(config.seed, "order", outer))
        return cls(config, real, outer, net, Sgd(net, config.lr_network), batches)

    def train(self, samples: int, inner: int) -> None:
        """See at least `samples` real images."""
        train_samples(
            self.net,
            self.optimiser,
            self.real,
            self.batches,
            samples,
            ops=self.config.network_augment(),
            cutmix=self.config.cutmix,
            generator=stream(self.config.seed, "network", self.outer, inner),
        )


def _free_tiles(config: CondenseConfig, state: CondenseState) -> Tensor:
    """(N, C, 1, 1, 1, 1) bool: False for the frozen prefix of each class (Eq. 10)."""
    ranks, classes = state.tiles.shape[:2]
    frozen = [frozen_ranks(config, state.mls, label) for label in range(classes)]
    rank = torch.arange(ranks)[:, None]
    free = rank >= torch.tensor(frozen)
    return free.to(state.tiles.device)[:, :, None, None, None, None]


def _fresh_network(config: CondenseConfig, real: RealSet, outer: int) -> Network:
    net = build_network(
        config.network,
        channels=real.channels,
        image_size=real.image_size,
        classes=real.num_classes,
        generator=stream(config.seed, "weights", outer),
    )
    return net.to(real.device)


def _by_track(config: CondenseConfig, measures: list[Tensor]) -> Distances:
    """Measures (C, N-1) of every iteration, averaged over iterations and, unless class-wise, over classes."""
    by_class = torch.stack(measures).mean(0)
    rows = by_class if config.class_wise else by_class.mean(0, keepdim=True)
    return tuple(tuple(row) for row in rows.tolist())


def _subset_accuracies(
    config: CondenseConfig, real: RealSet, holdout: RealSet, tiles: Tensor, outer: int
) -> Tensor:
    """Accuracy (C, N-1) per class on the training hold-out of networks trained on every subset (Table 6)."""
    recipe = EvaluateConfig(
        epochs=config.accuracy_epochs,
        network=config.network,
        augment=config.network_augment(),
        cutmix=config.cutmix,
    )
    columns = []
    for n in range(1, config.ipc):
        subset = SyntheticSet(tiles.clamp(0, 1), real.image_size).subset(n)
        net = _fresh_network(config, real, outer)
        images = real.normalise(subset.images())
        for _ in fit(net, images, subset.labels(), recipe, stream(config.seed, "accuracy", outer, n)):
            pass
        columns.append(class_accuracy(net, holdout))
    return torch.stack(columns, dim=1)
