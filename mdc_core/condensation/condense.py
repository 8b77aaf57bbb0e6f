"""The outer and inner loops of Multisize Dataset Condensation (arXiv 2403.06075, Algorithm 1), as an iterator.

Callers checkpoint, report and cancel between the steps that it yields. There are no callbacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.precision import products
from mdc_core.compute.streams import stream
from mdc_core.condensation import mls
from mdc_core.condensation.iteration import TileUpdate
from mdc_core.condensation.methods import METHODS
from mdc_core.condensation.mls import MlsState
from mdc_core.condensation.network_phase import initial_network
from mdc_core.condensation.pool import MemoryPools, PoolStore, Prepared, train_pool
from mdc_core.condensation.real_batches import class_representatives
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from mdc_core.data.real_set import RealSet
from mdc_core.data.splits import hold_out
from mdc_core.data.synthetic import SyntheticSet, initial_tiles, shrink
from mdc_core.errors import ConfigError
from mdc_core.training.accuracy import class_accuracy
from mdc_core.training.batched import fit
from mdc_core.training.real_training import RealTraining

_SHRUNK_AT_ONCE = 1024
"""Images."""
Distances = tuple[tuple[float, ...], ...]
"""F(1..N-1), one row per MLS track."""


@dataclass(frozen=True)
class CondenseState:
    """Everything that a run needs to continue; randomness follows from the seed and the loop numbers."""

    outer: int
    """Outer loops done."""
    tiles: Tensor
    """(N, C, f², ch, s, s) float32."""
    momentum: Tensor
    """Of the tiles, in the same shape."""
    mls: MlsState
    data: str
    """Fingerprint of the real images; a run resumes with the same images only."""
    optimiser_state: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method's optimiser keeps beside the momentum, by name (`tile_step`)."""


@dataclass(frozen=True)
class Step:
    """One finished outer loop."""

    outer: int
    """t, 1-based."""
    total: int
    """T."""
    loss: float
    """Matching loss: summed over classes, averaged over the E iterations."""
    distances: Distances | None
    """None: this loop did not measure them."""
    state: CondenseState
    seconds: float
    """Wall time of this loop."""

    def selected(self) -> tuple[int, ...]:
        """n* of every MLS track, valid from the next loop on."""
        return tuple(track.selected for track in self.state.mls.tracks)


def start_state(config: CondenseConfig, real: RealSet) -> CondenseState:
    """The state before the first loop, on the device of `real`."""
    chosen = _central_images(config, real) if config.init == "clusters" else None
    tiles = initial_tiles(config, real, chosen)
    return CondenseState(
        outer=0,
        tiles=tiles,
        momentum=torch.zeros_like(tiles),
        mls=mls.start(config, real.num_classes),
        data=real.fingerprint(),
        optimiser_state=METHODS[config.method].initial_optimiser_state(tiles),
    )


def _central_images(config: CondenseConfig, real: RealSet) -> list[Tensor]:
    """The N·f² images that represent each class, by features of an untrained network (DREAM, arXiv 2302.14416)."""
    net, start = initial_network(config, real, outer=0), stream(config.seed, "init")
    return class_representatives(real, net, config.ipc * config.factor**2, start)


def prepare(
    config: CondenseConfig, real: RealSet, device: torch.device | str = "cpu", *, pools: PoolStore
) -> Iterator[Prepared]:
    """Train the networks of the run's pool that `pools` does not have yet; yields after each.

    Pass the same store to `condense`; it trains missing networks on first use.

    Raises:
        ConfigError: at the first step, if the configuration is impossible on this data.
    """
    config.check_data(real.facts("the data set"))
    if not config.pool:
        return
    real, _ = _split(config, real.to(torch.device(device)))
    real = at_matched_side(config, real)
    config = config.matched()
    training = RealTraining(config, real, initial_network(config, real, outer=0), Recorder(real.device))
    members = train_pool(config, real, training, pools)
    for _ in range(config.pool):
        with products(config.precision):
            member = next(members)
        yield member


def condense(
    config: CondenseConfig,
    real: RealSet,
    device: torch.device | str = "cpu",
    resume: CondenseState | None = None,
    *,
    pools: PoolStore | None = None,
) -> Iterator[Step]:
    """Condense `real`; yields after every outer loop. The last step holds the result.

    A run resumed from any yielded state equals the uninterrupted one, bit for bit on the CPU.

    Args:
        resume: the state to continue from; None: start anew.
        pools: where networks of a pool are stored; missing ones are trained on first use. None: in memory only.

    Raises:
        ConfigError: at the first step, if the configuration is impossible on this data or `resume` belongs to other
            data; later, if the run diverges.
    """
    config.check_data(real.facts("the data set"))
    real = real.to(torch.device(device))
    fingerprint = real.fingerprint()  # of all images, before any are held out
    if resume is not None and resume.data != fingerprint:
        raise ConfigError(
            "the checkpoint was made from other images: resume with the data set it was made from"
        )
    real, holdout = _split(config, real)
    state = replace(resume or start_state(config, real), data=fingerprint)
    state = _moved(state, real.device)
    real, holdout = (at_matched_side(config, images) for images in (real, holdout))
    engine = _Engine(config.matched(), real, holdout, pools or MemoryPools())
    for outer in range(state.outer + 1, config.outer_loops + 1):
        begun = time.perf_counter()
        with products(config.precision):
            state, loss, distances = engine.outer_loop(state, outer)
        seconds = time.perf_counter() - begun
        yield Step(outer, config.outer_loops, loss, distances, state, seconds)


def result(state: CondenseState, real: RealSet) -> SyntheticSet:
    """The synthetic set of a state, tiles as they are (not rounded to what devices receive)."""
    return SyntheticSet(state.tiles, real.image_size)


def at_matched_side(config: CondenseConfig, real: RealSet) -> RealSet:
    """The real images as the networks see them: shrunk as new tiles are, where `config.at_tile_side` says so."""
    side = config.matched_side(real.image_size)
    if side == real.image_size:
        return real
    return replace(
        real, images=torch.cat([shrink(part, side) for part in real.images.split(_SHRUNK_AT_ONCE)])
    )


def _split(config: CondenseConfig, real: RealSet) -> tuple[RealSet, RealSet]:
    """The real images to train and match with, and those to measure accuracies on."""
    if not (config.uses_mls and config.subset_metric == "accuracy"):
        return real, real
    training, holdout = hold_out(real.labels.cpu(), real.classes)
    return real.subset(training.to(real.device)), real.subset(holdout.to(real.device))


def _moved(state: CondenseState, device: torch.device) -> CondenseState:
    """The state on another device."""
    optimiser_state = {name: value.to(device) for name, value in state.optimiser_state.items()}
    return replace(
        state,
        tiles=state.tiles.to(device),
        momentum=state.momentum.to(device),
        optimiser_state=optimiser_state,
    )


class _Engine:
    """What lives across outer loops: network and tiles, at fixed addresses, as CUDA graphs require."""

    def __init__(self, config: CondenseConfig, real: RealSet, holdout: RealSet, pools: PoolStore) -> None:
        self.config, self.real, self.holdout = config, real, holdout
        self.recorder = Recorder(real.device)
        self.networks = METHODS[config.method].networks(config, real, self.recorder, pools)
        self.update = TileUpdate(config, real, self.networks.net, self.recorder)

    def outer_loop(self, state: CondenseState, outer: int) -> tuple[CondenseState, float, Distances | None]:
        """Match for E iterations, then select the next MLS if this loop measures."""
        config, update = self.config, self.update
        measured = mls.is_measured(config, outer)
        update.begin(state.tiles, state.momentum, state.mls, measured, state.optimiser_state)
        for inner in range(1, config.inner_iterations + 1):
            self.networks.ready(outer, inner)
            update.run(outer, inner)
        average = float(update.loss) / config.inner_iterations
        if not (math.isfinite(average) and bool(update.tiles.isfinite().all())):
            raise ConfigError(
                f"the run diverged in outer loop {outer} (loss {average}): lower lr_base, which is {config.lr_base}"
            )
        optimiser_state = {name: value.clone() for name, value in update.optimiser_state.items()}
        state = replace(
            state,
            outer=outer,
            tiles=update.tiles.clone(),
            momentum=update.momentum.clone(),
            optimiser_state=optimiser_state,
        )
        if not measured:
            return state, average, None
        distances = self._distances(state.tiles, outer)
        return replace(state, mls=mls.advance(state.mls, distances)), average, distances

    def _distances(self, tiles: Tensor, outer: int) -> Distances:
        """F(1..N-1), averaged over iterations and, unless class-wise, over classes."""
        by_class = self.update.distances / self.config.inner_iterations
        if self.config.subset_metric == "accuracy":
            by_class = _subset_accuracies(self.config, self.real, self.holdout, tiles, outer, self.recorder)
        rows = by_class if self.config.class_wise else by_class.mean(0, keepdim=True)
        return tuple(tuple(row) for row in rows.tolist())


def _subset_accuracies(
    config: CondenseConfig,
    real: RealSet,
    holdout: RealSet,
    tiles: Tensor,
    outer: int,
    recorder: Recorder,
) -> Tensor:
    """Accuracy (C, N-1) per class on held-out training images, of networks trained on every subset (Table 6)."""
    recipe = EvaluateConfig(
        epochs=config.accuracy_epochs,
        network=config.network,
        augment=config.accuracy_augment,
        cutmix=config.accuracy_cutmix,
    )
    columns = []
    for n in range(1, config.ipc):
        subset = SyntheticSet(tiles.clamp(0, 1), real.image_size).subset(n)
        net = initial_network(config, real, outer)
        images = real.normalise(subset.images())
        draws = stream(config.seed, "accuracy", outer, n)
        for _ in fit(net, images, subset.labels(), real.normalisation, recipe, draws, recorder):
            pass
        columns.append(class_accuracy(net, holdout))
    return torch.stack(columns, dim=1)
