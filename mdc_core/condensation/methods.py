"""The methods as a table of records. The loop reads what it needs from a record, and never asks for a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.condensation.feature_matching import match_features
from mdc_core.condensation.gradient_matching import Match, RankGroups, match_gradients
from mdc_core.condensation.interpolation import InterpolatedNetworks, Interpolation
from mdc_core.condensation.network_phase import NetworkPhase
from mdc_core.condensation.pool import PoolStore
from mdc_core.condensation.real_batches import RandomBatches, RealBatches, RepresentativeBatches
from mdc_core.condensation.tile_step import TileState, TileStep, adam, adam_start, sgd
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network


class Networks(Protocol):
    """The source of the network that tiles are matched through, with new weights for every update."""

    @property
    def net(self) -> Network:
        """Always the same object, with its weights at fixed addresses."""

    def ready(self, outer: int, inner: int) -> None:
        """Set the weights for update `inner` of loop `outer`, both 1-based."""


@dataclass(frozen=True)
class Method:
    """Everything that differs between methods."""

    networks: Callable[[CondenseConfig, RealSet, Recorder, PoolStore], Networks]
    real_batches: Callable[[CondenseConfig, RealSet, Network], RealBatches]
    """Its network is that of `networks`."""
    match: Callable[[CondenseConfig, Network, Tensor, Tensor, Tensor, RankGroups, Tensor | None], Match]
    """Matches K classes: images (K, N, f², ch, H, H), real images (K, B, ch, H, H), labels (K,), and the tiles (K, m)
    of each class that take part, None for all."""
    step: TileStep
    initial_optimiser_state: Callable[[Tensor], TileState]
    """The optimiser's state beside the momentum, before the first update of tiles (N, C, f², ch, s, s)."""
    subset_weights: Callable[[int], tuple[float, ...]]
    """From N, the weights of sizes 1..N-1 if every subset is in the loss; the whole set has weight 1."""


def _match_features(
    config: CondenseConfig,
    net: Network,
    images: Tensor,
    real_images: Tensor,
    labels: Tensor,
    rank_groups: RankGroups,
    sample: Tensor | None,
) -> Match:
    assert isinstance(net, Interpolation)
    assert sample is None, "the configuration refuses batch_syn_max"
    return match_features(
        net.interpolated,
        net.trained,
        images,
        real_images,
        labels,
        rank_groups,
        calibration=config.calibration,
        decay=config.calibration_decay,
    )


_IDC = Method(
    networks=NetworkPhase,
    real_batches=RandomBatches,
    match=match_gradients,
    step=sgd,
    initial_optimiser_state=lambda tiles: {},
    subset_weights=lambda ipc: (1.0,) * (ipc - 1),
)
METHODS: Mapping[str, Method] = {
    "idc": _IDC,
    "dream": replace(_IDC, real_batches=RepresentativeBatches),
    "feature": Method(
        networks=InterpolatedNetworks,
        real_batches=RandomBatches,
        match=_match_features,
        step=adam,
        initial_optimiser_state=adam_start,
        subset_weights=lambda ipc: tuple(1 / n for n in range(1, ipc)),
    ),
}
"""By the name that a configuration gives."""
