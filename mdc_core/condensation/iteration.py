"""One iteration: match every class with its real images while the network θ stands still, then move the tiles.

Algorithm 1, inner loop. θ is fixed meanwhile, so the classes are independent: as many are matched at once as suits the
device, up to all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mdc_core.compute.batching import gpu_free
from mdc_core.compute.cuda_graph import Recorder, fill
from mdc_core.compute.streams import stream
from mdc_core.condensation.gradient_matching import Match, RankGroups
from mdc_core.condensation.methods import METHODS
from mdc_core.condensation.mls import MlsState
from mdc_core.condensation.tile_step import TileState
from mdc_core.config import estimate
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.data.synthetic import decode
from mdc_core.networks import Network
from mdc_core.training import augment
from mdc_core.training.augment import AugmentParams


@dataclass(frozen=True)
class Draws:
    """What is random about one iteration, drawn ahead on the CPU."""

    params: AugmentParams
    """A row for every class, the same for its real and its synthetic images."""
    real: Tensor
    """(ΣB,) int64: positions of the real batches, class by class."""
    sample: Tensor | None
    """(C, m) int64: the tiles of each class that take part, when `batch_syn_max` leaves some out."""

    def to(self, device: torch.device) -> Draws:
        """The same on another device."""
        sample = None if self.sample is None else self.sample.to(device)
        return Draws(self.params.map(lambda value: value.to(device)), self.real.to(device), sample)


@dataclass(frozen=True)
class Chunk:
    """Neighbouring classes that are matched at once."""

    first: int
    classes: int
    real_batch: int
    """B."""
    rank_groups: RankGroups


@dataclass(frozen=True)
class Matched:
    """One iteration over all classes."""

    gradient: Tensor
    """Of the loss, with respect to the tiles (N, C, f², ch, s, s)."""
    loss: Tensor
    """(C,)"""
    distances: Tensor | None
    """Subset distances (C, N-1), float64, when they are measured."""


class TileUpdate:
    """The tiles of a run, and how an iteration moves them: tensors in fixed places, so that a GPU can record it."""

    def __init__(self, config: CondenseConfig, real: RealSet, net: Network, recorder: Recorder) -> None:
        self._config, self._real, self._net, self._recorder = config, real, net, recorder
        self._method = METHODS[config.method]
        side, device = config.tile_side(real.image_size), real.device
        shape = (config.ipc, real.num_classes, config.factor**2, real.channels, side, side)
        self.tiles = torch.zeros(shape, device=device)
        self.momentum = torch.zeros_like(self.tiles)
        self.optimiser_state = dict(self._method.initial_optimiser_state(self.tiles))
        """What the method's step keeps besides."""
        self._free = torch.ones(*shape[:2], 1, 1, 1, 1, dtype=torch.bool, device=device)
        self.loss = torch.zeros((), device=device)
        """Summed over classes and over the iterations since `begin`."""
        self.distances = torch.zeros(shape[1], config.ipc - 1, dtype=torch.float64, device=device)
        """(C, N-1), summed over the iterations since `begin`, when they are measured."""
        self._per_batch = classes_per_batch(config, real)
        self._static_inputs: Draws | None = None
        self._batches = torch.empty(
            (sum(real_batches(config, real)), *real.images.shape[1:]), dtype=torch.uint8, device=device
        )
        self._recorded: dict[tuple[tuple[Chunk, ...], bool], Callable[[], None]] = {}
        self._begun: tuple[MlsState, bool]
        self._move: Callable[[], None]

    def begin(
        self,
        tiles: Tensor,
        momentum: Tensor,
        state: MlsState,
        measured: bool,
        optimiser_state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take up the tiles (N, C, f², ch, s, s) of an outer loop, clamped where they are free (Eq. 10).

        `optimiser_state` is what the method's step keeps besides, as it was; left out: as before the first update.
        """
        frozen = [frozen_ranks(self._config, state, label) for label in range(tiles.shape[1])]
        free = torch.arange(len(tiles))[:, None] >= torch.tensor(frozen)
        self._free.copy_(free[:, :, None, None, None, None])
        self.tiles.copy_(torch.where(self._free, tiles.clamp(0, 1), tiles))
        self.momentum.copy_(momentum)
        before = (
            self._method.initial_optimiser_state(self.tiles) if optimiser_state is None else optimiser_state
        )
        for name, place in self.optimiser_state.items():
            place.copy_(before[name])
        self.loss.zero_()
        self.distances.zero_()
        self._begun = state, measured
        self._move = self._planned()

    def run(self, outer: int, inner: int) -> None:
        """One iteration, as `begin` has set it up; nothing here waits for the device.

        Raises:
            torch.OutOfMemoryError: not even one class fits.
        """
        draws = draw_iteration(self._config, self._real, outer, inner)
        if self._static_inputs is None:
            self._static_inputs = draws.to(self._real.device)
        fill(self._static_inputs, draws)
        self._batches.copy_(self._real.take(draws.real))
        while not self._moved():
            self._per_batch = -(-self._per_batch // 2)
            self._recorded.clear()
            self._move = self._planned()
            logging.getLogger(__name__).warning(
                "the GPU has too little memory for what was planned: from now on %d classes are matched at once",
                self._per_batch,
            )

    def _planned(self) -> Callable[[], None]:
        """An iteration of this outer loop, with as many classes at once as have turned out to fit."""
        state, measured = self._begun
        plan = tuple(chunks(self._config, self._real, state, measured, self._per_batch))
        if (plan, measured) not in self._recorded:
            # Kernels are chosen by the shapes of a chunk, whichever classes are in it.
            shapes: set[Hashable] = {
                ("match", chunk.classes, chunk.real_batch, chunk.rank_groups) for chunk in plan
            }
            shapes.add(("move", measured))
            self._recorded[plan, measured] = self._recorder.recorded(self._iterate, shapes, plan, measured)
        return self._recorded[plan, measured]

    def _moved(self) -> bool:
        """Whether the tiles were moved; False, and nothing has changed, where fewer classes at once might fit."""
        try:
            self._move()
        except torch.OutOfMemoryError:
            if self._per_batch == 1:
                raise
            return False
        return True

    def _iterate(self, plan: Sequence[Chunk], measured: bool) -> None:
        assert self._static_inputs is not None
        real, config = self._real, self._config
        found = match_classes(
            config,
            real,
            self._net,
            self.tiles,
            self._static_inputs,
            real.prepare(self._batches),
            plan,
            measured,
        )
        now: TileState = {"tiles": self.tiles, "momentum": self.momentum, **self.optimiser_state}
        moved = self._method.step(config, real.image_size, now, found.gradient, self._free)
        loss = found.loss.sum()
        # All that takes memory is done: from here on an iteration happens as a whole.
        for name, place in now.items():
            place.copy_(moved[name])
        self.loss += loss
        if found.distances is not None:
            self.distances += found.distances


def draw_iteration(config: CondenseConfig, real: RealSet, outer: int, inner: int) -> Draws:
    """Augmentation of every class, its real batch, and its sample of tiles."""
    draws = stream(config.seed, "match", outer, inner)
    params = augment.draw(
        config.augment,
        1,
        batches=real.num_classes,
        normalisation=real.normalisation,
        image_size=real.image_size,
        generator=draws,
    )
    chosen = [
        positions[torch.randperm(len(positions), generator=draws)[: config.batch_real]]
        for positions in real.class_index()
    ]
    sample, tiles = None, config.ipc * config.factor**2
    if config.tile_batch() < tiles:
        orders = [torch.randperm(tiles, generator=draws) for _ in range(real.num_classes)]
        sample = torch.stack(orders)[:, : config.tile_batch()]
    return Draws(params, torch.cat(chosen), sample)


def match_classes(
    config: CondenseConfig,
    real: RealSet,
    net: Network,
    tiles: Tensor,
    draws: Draws,
    real_images: Tensor,
    plan: Sequence[Chunk],
    measured: bool,
) -> Matched:
    """Match every class with its real batch, of `real_images` (ΣB, ch, H, H), normalised."""
    side = real.image_size
    leaf = tiles.detach().requires_grad_()
    ranks, classes, per_image = tiles.shape[:3]
    owners = torch.arange(classes, device=tiles.device).repeat_interleave(per_image).repeat(ranks)
    decoded = real.normalise(decode(leaf.flatten(0, 2), side))
    images = augment.apply(draws.params.rows(owners), decoded).view(*tiles.shape[:4], side, side)
    by_class = images.detach().transpose(0, 1)  # (C, N, f², ch, H, H)
    match, matches, begun = METHODS[config.method].match, [], 0
    for chunk in plan:
        span = slice(chunk.first, chunk.first + chunk.classes)
        labels = torch.arange(chunk.first, span.stop, device=tiles.device)
        batch = real_images[begun : begun + chunk.classes * chunk.real_batch]
        begun += len(batch)
        batch = augment.apply(draws.params.rows(labels.repeat_interleave(chunk.real_batch)), batch)
        batch = batch.view(chunk.classes, chunk.real_batch, *batch.shape[1:])
        sample = None if draws.sample is None else draws.sample[span]
        matches.append(match(config, net, by_class[span], batch, labels, chunk.rank_groups, sample))
    grads = torch.cat([found.image_gradient for found in matches]).transpose(0, 1)
    return Matched(
        gradient=torch.autograd.grad(images, leaf, grads)[0],
        loss=torch.cat([found.loss for found in matches]),
        distances=_subset_distances(config, matches) if measured else None,
    )


def chunks(
    config: CondenseConfig, real: RealSet, state: MlsState, measured: bool, per_batch: int
) -> list[Chunk]:
    """All classes in order, at most `per_batch` together, and only those that are cut alike."""
    sizes = real_batches(config, real)
    alike = [
        (sizes[label], _rank_groups(config, state, label, measured)) for label in range(real.num_classes)
    ]
    found, first = [], 0
    for (size, rank_groups), group in groupby(alike):
        end = first + len(list(group))
        found += [Chunk(i, min(per_batch, end - i), size, rank_groups) for i in range(first, end, per_batch)]
        first = end
    return found


def classes_per_batch(config: CondenseConfig, real: RealSet) -> int:
    """How many classes are matched together."""
    return estimate.classes_per_batch(config, real.facts("the data set"), gpu_free(real.device))


def real_batches(config: CondenseConfig, real: RealSet) -> list[int]:
    """B of every class: `batch_real`, or all images of a smaller class."""
    return [min(config.batch_real, len(positions)) for positions in real.class_index()]


def loss_weights(config: CondenseConfig, selected: int) -> dict[int, float]:
    """Weight of every subset size in the loss of a class whose MLS has `selected` images (Eq. 4)."""
    weights = {config.ipc: 1.0}
    if config.uses_mls:
        weights[selected] = 1.0
    elif config.subset_loss == "all":
        given = config.subset_weights or METHODS[config.method].subset_weights(config.ipc)
        weights |= {n: w for n, w in enumerate(given, start=1) if w}
    return weights


def frozen_ranks(config: CondenseConfig, state: MlsState, label: int) -> int:
    """How many leading ranks of a class are constants in this outer loop (Eq. 10)."""
    return state.of_class(label).frozen(config.freeze) if config.uses_mls else 0


def _rank_groups(config: CondenseConfig, state: MlsState, label: int, measured: bool) -> RankGroups:
    weights = loss_weights(config, state.of_class(label).selected)
    extra = range(1, config.ipc) if measured and config.subset_metric == "gradient" else ()
    return RankGroups(tuple(weights.items()), frozen_ranks(config, state, label), tuple(extra))


def _subset_distances(config: CondenseConfig, matches: Sequence[Match]) -> Tensor:
    """(C, N-1), float64."""
    if config.subset_metric == "gradient":
        sizes = range(1, config.ipc)
        rows = [torch.stack([found.gradient_distances[n] for n in sizes], dim=1) for found in matches]
    else:
        rows = [found.feature_distances[:, :-1] for found in matches]
    return torch.cat(rows).double()
