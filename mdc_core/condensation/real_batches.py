"""The real images that each class is matched with: random ones, or representatives of its clusters."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mdc_core.compute.kmeans import representatives
from mdc_core.compute.streams import stream
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network

_FEATURES_AT_ONCE = 512
"""Images."""


class RealBatches(Protocol):
    """The source of real batches."""

    def draw(self, outer: int, inner: int, generator: torch.Generator) -> list[Tensor]:
        """The positions (B,) of each class's batch for update `inner` of loop `outer`, both 1-based; on the CPU."""


class RandomBatches:
    """Random images of the class, drawn anew for every update."""

    def __init__(self, config: CondenseConfig, real: RealSet, net: Network) -> None:
        self._size, self._real = config.batch_real, real

    def draw(self, outer: int, inner: int, generator: torch.Generator) -> list[Tensor]:
        """See `RealBatches.draw`."""
        return [
            positions[torch.randperm(len(positions), generator=generator)[: self._size]]
            for positions in self._real.class_index()
        ]


class RepresentativeBatches:
    """The images closest to the centroids of the class, clustered by features of the matched network (DREAM).

    Every `cluster_period` updates the class is clustered anew, since the network changes (arXiv 2302.14416).
    """

    def __init__(self, config: CondenseConfig, real: RealSet, net: Network) -> None:
        self._config, self._real, self._net = config, real, net
        self._chosen: list[Tensor] = []

    def draw(self, outer: int, inner: int, generator: torch.Generator) -> list[Tensor]:
        """See `RealBatches.draw`; `generator` is not used."""
        config = self._config
        if (inner - 1) % config.cluster_period == 0:
            start = stream(config.seed, "clusters", outer, inner)
            self._chosen = class_representatives(self._real, self._net, config.batch_real, start)
        return self._chosen


def class_representatives(
    real: RealSet, net: Network, count: int, generator: torch.Generator
) -> list[Tensor]:
    """The positions (count,) of the images that represent each class: int64, on the CPU.

    Args:
        net: the network whose features are clustered.
        generator: draws the centroids that the clustering starts from.
    """
    return [
        positions[representatives(_features(real, net, positions), count, generator).cpu()]
        for positions in real.class_index()
    ]


@torch.no_grad()
def _features(real: RealSet, net: Network, positions: Tensor) -> Tensor:
    """Features (B, D) of the images at `positions`, not augmented."""
    parts = [net.features(real.prepare(real.take(part))) for part in positions.split(_FEATURES_AT_ONCE)]
    return torch.cat(parts).flatten(1)
