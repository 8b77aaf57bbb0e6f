"""One iteration of the inner loop (Algorithm 1): match every class with its real images, then move the tiles.

The network θ stands still meanwhile, so classes are independent and are matched in batches that suit the device.
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
from mdc_core.condensation.real_batches import RealBatches
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
    """All random choices of one iteration, drawn ahead on the CPU."""

    params: AugmentParams
    """One row per class, the same for its real and its synthetic images (siamese augmentation)."""
    real: Tensor
    """(ΣB,) int64: positions of the real batches, class by class."""
    sample: Tensor | None
    """(C, m) int64: the tiles of each class that take part; None: all, unless `batch_syn_max` leaves some out."""

    def to(self, device: torch.device) -> Draws:
        """The same draws on another device."""
        sample = None if self.sample is None else self.sample.to(device)
        return Draws(self.params.map(lambda value: value.to(device)), self.real.to(device), sample)


@dataclass(frozen=True)
class Chunk:
    """Neighbouring classes that are matched in one batch."""

    first: int
    classes: int
    real_batch: int
    """B."""
    rank_groups: RankGroups


@dataclass(frozen=True)
class Matched:
    """The outcome of matching all classes once."""

    gradient: Tensor
    """Gradient of the loss for the tiles, (N, C, f², ch, s, s)."""
    loss: Tensor
    """(C,)"""
    distances: Tensor | None
    """Subset distances (C, N-1), float64; None: not measured."""


class TileUpdate:
    """The tiles of a run, and the iteration that moves them.

    All tensors keep their addresses, so that a GPU can record an iteration as a CUDA graph.
    """

    def __init__(self, config: CondenseConfig, real: RealSet, net: Network, recorder: Recorder) -> None:
        self._config, self._real, self._net, self._recorder = config, real, net, recorder
        self._method = METHODS[config.method]
        device = real.device
        side = real.image_size if config.at_tile_side else config.tile_side(real.image_size)
        shape = (config.ipc, real.num_classes, config.factor**2, real.channels, side, side)
        self.tiles = torch.zeros(shape, device=device)
        self.momentum = torch.zeros_like(self.tiles)
        self.optimiser_state = dict(self._method.initial_optimiser_state(self.tiles))
        """State of the method's optimiser beside the momentum, by name."""
        self._free = torch.ones(*shape[:2], 1, 1, 1, 1, dtype=torch.bool, device=device)
        self._real_batches = self._method.real_batches(config, real, net)
        self.loss = torch.zeros((), device=device)
        """Scalar, summed over classes and over the iterations since `begin`."""
        self.distances = torch.zeros(shape[1], config.ipc - 1, dtype=torch.float64, device=device)
        """(C, N-1), summed over the iterations since `begin`; zero unless they are measured."""
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
        """Load the tiles (N, C, f², ch, s, s) of an outer loop, clamped to [0, 1] where they are free (Eq. 10).

        Args:
            measured: whether this loop measures subset distances.
            optimiser_state: of the method, beside the momentum; None: as before the first update.
        """
        frozen = [frozen_ranks(self._config, state, label) for label in range(tiles.shape[1])]
        free = torch.arange(len(tiles))[:, None] >= torch.tensor(frozen)
        self._free.copy_(free[:, :, None, None, None, None])
        self.tiles.copy_(torch.where(self._free, tiles.clamp(0, 1), tiles))
        self.momentum.copy_(momentum)
        if optimiser_state is None:
            optimiser_state = self._method.initial_optimiser_state(self.tiles)
        for name, value in self.optimiser_state.items():
            value.copy_(optimiser_state[name])
        self.loss.zero_()
        self.distances.zero_()
        self._begun = state, measured
        self._move = self._planned()

    def run(self, outer: int, inner: int) -> None:
        """One iteration, as `begin` has set it up. It never waits for the device.

        If memory runs out, the classes are matched in smaller batches from then on.

        Raises:
            torch.OutOfMemoryError: not even one class fits.
        """
        draws = draw_iteration(self._config, self._real, self._real_batches, outer, inner)
        if self._static_inputs is None:
            self._static_inputs = draws.to(self._real.device)
        fill(self._static_inputs, draws)
        self._batches.copy_(self._real.take(draws.real))
        while not self._moved():
            self._per_batch = -(-self._per_batch // 2)
            self._recorded.clear()
            self._move = self._planned()
            logging.getLogger(__name__).warning(
                "the GPU ran out of memory: from now on %d classes are matched per batch, which is slower",
                self._per_batch,
            )

    def _planned(self) -> Callable[[], None]:
        """The iteration of this outer loop, with as many classes per batch as fit."""
        state, measured = self._begun
        plan = tuple(chunks(self._config, self._real, state, measured, self._per_batch))
        if (plan, measured) not in self._recorded:
            # Kernels depend on a chunk's shapes, not on which classes are in it. A new plan of known chunks is thus
            # recorded without another warm-up.
            shapes: set[Hashable] = {
                ("match", chunk.classes, chunk.real_batch, chunk.rank_groups) for chunk in plan
            }
            shapes.add(("move", measured))
            self._recorded[plan, measured] = self._recorder.recorded(self._iterate, shapes, plan, measured)
        return self._recorded[plan, measured]

    def _moved(self) -> bool:
        """Whether the tiles were moved. False: memory ran out, nothing has changed, and fewer classes may fit."""
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
        matched = match_classes(
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
        moved = self._method.step(config, real.image_size, now, matched.gradient, self._free)
        loss = matched.loss.sum()
        # Nothing below allocates memory. So if memory runs out, it does so above, before any state has changed.
        for name, value in now.items():
            value.copy_(moved[name])
        self.loss += loss
        if matched.distances is not None:
            self.distances += matched.distances


def draw_iteration(
    config: CondenseConfig, real: RealSet, batches: RealBatches, outer: int, inner: int
) -> Draws:
    """Draw the augmentation of every class, its real batch, and its sample of tiles."""
    draws = stream(config.seed, "match", outer, inner)
    params = augment.draw(
        config.augment,
        1,
        batches=real.num_classes,
        normalisation=real.normalisation,
        image_size=real.image_size,
        generator=draws,
    )
    chosen = batches.draw(outer, inner, draws)
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
    """Match every class with its real batch.

    Decoding and augmentation run once for all classes, the matching chunk by chunk. Each chunk returns the gradient for
    its images, and one backward pass through augmentation and decoding turns all of them into the gradient for the
    tiles. So no chunk's graph outlives the chunk, and memory is that of the largest.

    Args:
        tiles: (N, C, f², ch, s, s).
        real_images: (ΣB, ch, H, H), normalised, class by class.
        plan: covers all classes in order.
        measured: whether subset distances are wanted.
    """
    side = real.image_size
    leaf = tiles.detach().requires_grad_()
    ranks, classes, per_image = tiles.shape[:3]
    # (N·C·f²,): the class of every tile. All images of a class are augmented by the row of their class.
    owners = torch.arange(classes, device=tiles.device).repeat_interleave(per_image).repeat(ranks)
    decoded = real.normalise(decode(leaf.flatten(0, 2), side))  # (N·C·f², ch, H, H)
    images = augment.apply(draws.params.rows(owners), decoded).view(*tiles.shape[:4], side, side)
    by_class = images.detach().transpose(0, 1)  # (C, N, f², ch, H, H), cut off from the graph
    match_chunk, matches, begun = METHODS[config.method].match, [], 0
    for chunk in plan:
        span = slice(chunk.first, chunk.first + chunk.classes)  # K classes
        labels = torch.arange(chunk.first, span.stop, device=tiles.device)
        batch = real_images[begun : begun + chunk.classes * chunk.real_batch]
        begun += len(batch)
        batch = augment.apply(draws.params.rows(labels.repeat_interleave(chunk.real_batch)), batch)
        batch = batch.view(chunk.classes, chunk.real_batch, *batch.shape[1:])  # (K, B, ch, H, H)
        sample = None if draws.sample is None else draws.sample[span]
        matches.append(match_chunk(config, net, by_class[span], batch, labels, chunk.rank_groups, sample))
    grads = torch.cat([match.image_gradient for match in matches]).transpose(0, 1)  # (N, C, f², ch, H, H)
    return Matched(
        gradient=torch.autograd.grad(images, leaf, grads)[0],
        loss=torch.cat([match.loss for match in matches]),
        distances=_subset_distances(config, matches) if measured else None,
    )


def chunks(
    config: CondenseConfig, real: RealSet, state: MlsState, measured: bool, per_batch: int
) -> list[Chunk]:
    """All classes in order, at most `per_batch` per chunk; a chunk has one real batch size and the same rank groups."""
    sizes = real_batches(config, real)
    alike = [
        (sizes[label], _rank_groups(config, state, label, measured)) for label in range(real.num_classes)
    ]
    plan, first = [], 0
    for (size, rank_groups), group in groupby(alike):
        end = first + len(list(group))
        plan += [Chunk(i, min(per_batch, end - i), size, rank_groups) for i in range(first, end, per_batch)]
        first = end
    return plan


def classes_per_batch(config: CondenseConfig, real: RealSet) -> int:
    """How many classes are matched in one batch on the device of `real`."""
    return estimate.classes_per_batch(config, real.facts("the data set"), gpu_free(real.device))


def real_batches(config: CondenseConfig, real: RealSet) -> list[int]:
    """B of every class: `batch_real`, or the number of its images if that is smaller."""
    return [min(config.batch_real, len(positions)) for positions in real.class_index()]


def loss_weights(config: CondenseConfig, selected: int) -> dict[int, float]:
    """Weight of every subset size in the loss of a class whose MLS has `selected` images (Eq. 4)."""
    weights = {config.ipc: 1.0}
    if config.uses_mls:
        weights[selected] = 1.0
    elif config.subset_loss == "all":
        subset_weights = config.subset_weights or METHODS[config.method].subset_weights(config.ipc)
        weights |= {n: w for n, w in enumerate(subset_weights, start=1) if w}
    return weights


def frozen_ranks(config: CondenseConfig, state: MlsState, label: int) -> int:
    """How many leading ranks of a class are constants in this outer loop (Eq. 10)."""
    return state.of_class(label).frozen(config.freeze) if config.uses_mls else 0


def _rank_groups(config: CondenseConfig, state: MlsState, label: int, measured: bool) -> RankGroups:
    weights = loss_weights(config, state.of_class(label).selected)
    extra = range(1, config.ipc) if measured and config.subset_metric == "gradient" else ()
    return RankGroups(tuple(weights.items()), frozen_ranks(config, state, label), tuple(extra))


def _subset_distances(config: CondenseConfig, matches: Sequence[Match]) -> Tensor:
    """(C, N-1), float64: distances of sizes 1..N-1, by the metric of the configuration."""
    if config.subset_metric == "gradient":
        sizes = range(1, config.ipc)
        rows = [torch.stack([match.gradient_distances[n] for n in sizes], dim=1) for match in matches]
    else:
        rows = [match.feature_distances[:, :-1] for match in matches]
    return torch.cat(rows).double()
