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

from mdc_core import augment, mls
from mdc_core.config import CondenseConfig, EvaluateConfig
from mdc_core.data import RealSet
from mdc_core.errors import ConfigError
from mdc_core.matching import ClassMatch, match_class
from mdc_core.mls import MlsState
from mdc_core.networks import Network, build_network
from mdc_core.splits import hold_out
from mdc_core.streams import stream
from mdc_core.synthetic import SyntheticSet, decode, initial_tiles
from mdc_core.train import class_accuracy, fit, sgd, shuffled, train_samples


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
    distances: tuple[tuple[float, ...], ...] | None
    """F(1..N-1), a row per MLS track, when this loop measured it."""
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


def loss_weights(config: CondenseConfig, selected: int) -> dict[int, float]:
    """Weight of every subset size in the loss of a class whose MLS has `selected` images (Eq. 4)."""
    weights = {config.ipc: 1.0}
    if config.uses_mls:
        weights[selected] = 1.0
    elif config.subset_loss == "all":
        given = config.subset_weights or (1.0,) * (config.ipc - 1)
        weights |= {n: w for n, w in enumerate(given, start=1) if w}
    return weights


def _outer_loop(
    config: CondenseConfig, real: RealSet, holdout: RealSet, state: CondenseState, outer: int
) -> tuple[CondenseState, float, tuple[tuple[float, ...], ...] | None]:
    """Match one fresh network for E iterations, then do the MLS bookkeeping."""
    free = _free_tiles(config, state)
    tiles = torch.where(free, state.tiles.clamp(0, 1), state.tiles)
    momentum = state.momentum
    net = _fresh_network(config, real, outer)
    optimiser = sgd(net, config.lr_network)
    batches = shuffled(len(real.labels), config.batch_network, stream(config.seed, "order", outer))
    lr = config.tile_lr(real.image_size)
    measured = mls.is_measured(config, outer)
    loss = torch.zeros((), device=tiles.device)
    measures = []
    for inner in range(config.inner_iterations + 1):
        # Iteration 0 only pre-trains; after the last tile update there is nothing left to train the network for.
        samples = config.n_data if inner else config.early * len(real.labels)
        if inner:
            matched = _match(config, real, net, tiles, state.mls, outer, inner, measured)
            momentum = torch.where(free, config.momentum * momentum + matched.gradient, 0.0)
            tiles = tiles - lr * momentum
            loss += torch.stack([match.loss for match in matched.classes]).sum()
            if measured:
                measures.append(_measure(config, matched.classes))
        if inner < config.inner_iterations:
            train_samples(
                net,
                optimiser,
                real,
                batches,
                samples,
                ops=config.network_augment(),
                cutmix=config.cutmix,
                generator=stream(config.seed, "network", outer, inner),
            )
    mls_state, distances = state.mls, None
    if measured:
        if config.subset_metric == "accuracy":
            measures = [_subset_accuracies(config, real, holdout, tiles, outer)]
        by_class = torch.stack(measures).mean(0)  # (C, N-1)
        rows = by_class if config.class_wise else by_class.mean(0, keepdim=True)
        distances = tuple(tuple(row) for row in rows.tolist())
        mls_state = mls.advance(mls_state, distances)
    average = float(loss) / config.inner_iterations
    if not (math.isfinite(average) and bool(tiles.isfinite().all())):
        raise ConfigError(
            f"the run diverged in outer loop {outer} (loss {average}): lower lr_base, which is {config.lr_base}"
        )
    return CondenseState(outer, tiles, momentum, mls_state, state.data), average, distances


def _free_tiles(config: CondenseConfig, state: CondenseState) -> Tensor:
    """(N, C, 1, 1, 1, 1) bool: False for the frozen prefix of each class (Eq. 10)."""
    ranks, classes = state.tiles.shape[:2]
    frozen = [_frozen(config, state.mls, label) for label in range(classes)]
    rank = torch.arange(ranks)[:, None]
    free = rank >= torch.tensor(frozen)
    return free.to(state.tiles.device)[:, :, None, None, None, None]


def _frozen(config: CondenseConfig, state: MlsState, label: int) -> int:
    return state.of_class(label).frozen(config.freeze) if config.uses_mls else 0


def _fresh_network(config: CondenseConfig, real: RealSet, outer: int) -> Network:
    net = build_network(
        config.network,
        channels=real.channels,
        image_size=real.image_size,
        classes=real.num_classes,
        generator=stream(config.seed, "weights", outer),
    )
    return net.to(real.images.device)


@dataclass(frozen=True)
class _Matched:
    """One iteration over all classes."""

    gradient: Tensor
    """Of the loss, with respect to the tiles (N, C, f², ch, s, s)."""
    classes: list[ClassMatch]


def _match(
    config: CondenseConfig,
    real: RealSet,
    net: Network,
    tiles: Tensor,
    state: MlsState,
    outer: int,
    inner: int,
    measured: bool,
) -> _Matched:
    """Match every class; θ is fixed meanwhile, so the classes are independent.

    Every class has augmentation parameters of its own, the same for its real and its synthetic images.
    """
    draws = stream(config.seed, "match", outer, inner)
    side, classes = real.image_size, real.num_classes
    params = augment.draw(config.augment, classes, channels=real.channels, image_size=side, generator=draws)
    leaf = tiles.detach().requires_grad_()
    ranks, _, per_image = tiles.shape[:3]
    owners = torch.arange(classes).repeat_interleave(per_image).repeat(ranks)
    decoded = real.normalise(decode(leaf.flatten(0, 2), side))
    images = augment.apply(params.rows(owners), decoded).view(*tiles.shape[:4], side, side)
    batches = _real_batches(config, real, params, draws)
    matches = []
    for label, batch in enumerate(batches):
        own = images[:, label].detach()
        if config.tile_batch() < ranks * per_image:
            chosen = torch.randperm(ranks * per_image, generator=draws)[: config.tile_batch()]
            matches.append(_match_sample(config, net, own, batch, label, chosen))
            continue
        track = state.of_class(label)
        matches.append(
            match_class(
                net,
                own,
                batch,
                label,
                weights=loss_weights(config, track.selected),
                frozen=_frozen(config, state, label),
                metric=config.metric,
                extra_cuts=range(1, config.ipc) if measured and config.subset_metric == "gradient" else (),
            )
        )
    slopes = torch.stack([match.image_gradient for match in matches], dim=1)
    return _Matched(torch.autograd.grad(images, leaf, slopes)[0], matches)


def _real_batches(
    config: CondenseConfig, real: RealSet, params: augment.AugmentParams, draws: torch.Generator
) -> Iterator[Tensor]:
    """For every class up to `batch_real` random images (B, ch, H, H), normalised and augmented."""
    orders = [
        positions[torch.randperm(len(positions), generator=draws)[: config.batch_real].to(positions.device)]
        for positions in real.class_index()
    ]
    sizes = [len(order) for order in orders]
    owners = torch.arange(real.num_classes).repeat_interleave(torch.tensor(sizes))
    images = real.normalise(real.floats(torch.cat(orders)))
    return iter(torch.split_with_sizes(augment.apply(params.rows(owners), images), sizes))


def _match_sample(
    config: CondenseConfig, net: Network, images: Tensor, batch: Tensor, label: int, chosen: Tensor
) -> ClassMatch:
    """Match a random part of a class's tiles (`batch_syn_max`, without subset loss): the others have no gradient."""
    chosen = chosen.to(images.device)
    sample = images.flatten(0, 1)[chosen].unsqueeze(1)  # every tile as a rank of its own
    match = match_class(net, sample, batch, label, weights={len(chosen): 1.0}, frozen=0, metric=config.metric)
    gradient = torch.zeros_like(images).flatten(0, 1)
    gradient[chosen] = match.image_gradient.squeeze(1)
    return replace(match, image_gradient=gradient.view_as(images))


def _measure(config: CondenseConfig, matches: list[ClassMatch]) -> Tensor:
    """Subset distances (C, N-1), float64, of one iteration."""
    if config.subset_metric == "gradient":
        sizes = range(1, config.ipc)
        rows = [torch.stack([match.gradient_distances[n] for n in sizes]) for match in matches]
    else:
        rows = [match.feature_distances[:-1] for match in matches]
    return torch.stack(rows).double()


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
