"""Networks between their first and their trained weights, those of a pool: what feature matching looks through.

w = share · first + (1 - share) · trained stands for the whole course of a training, without training anything
(DANCE, arXiv 2406.01063).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.streams import stream
from mdc_core.condensation.network_phase import fresh_network
from mdc_core.condensation.pool import Pool, PoolStore, first_weights
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network
from mdc_core.training.real_training import RealTraining


class Interpolation(Network):
    """A network between first and trained weights; `trained` is the same one at its end. Neither is differentiated."""

    def __init__(self, between: Network, trained: Network) -> None:
        super().__init__()
        self.between, self.trained = between, trained
        self.requires_grad_(False)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """Of the network between."""
        return self.between.block_outputs(images)

    def head(self, features: Tensor) -> Tensor:
        """Of the network between."""
        return self.between.head(features)


class InterpolatedNetworks:
    """A network of the pool, and a place on its way, for every inner iteration; weights stay in their places."""

    def __init__(self, config: CondenseConfig, real: RealSet, recorder: Recorder, pools: PoolStore) -> None:
        self._config = config
        self.net = Interpolation(*(fresh_network(config, real, outer=0) for _ in range(2)))
        # Made when the first network has to be trained, since they may all be there.
        training = cache(lambda: RealTraining(config, real, fresh_network(config, real, outer=0), recorder))
        self._pool = Pool(config, real, self.net.between, pools, training)
        self._first: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def ready(self, outer: int, inner: int) -> None:
        """Draw the network that update `inner` of loop `outer`, both 1-based, looks through."""
        draws = stream(self._config.seed, "interpolation", outer, inner)
        number = int(torch.randint(self._config.pool, (), generator=draws))
        share = float(torch.rand((), generator=draws))
        trained, first = self._pool.trained(number), self._first_weights(number)
        _set(self.net.trained, trained)
        _set(self.net.between, torch._foreach_lerp(trained, first, share))

    def _first_weights(self, number: int) -> list[Tensor]:
        if number not in self._first:
            first_weights(self._config, self.net.between, number)
            self._first[number] = [parameter.clone() for parameter in self.net.between.parameters()]
        return self._first[number]


def _set(net: Network, weights: Iterable[Tensor]) -> None:
    for parameter, weight in zip(net.parameters(), weights, strict=True):
        parameter.copy_(weight)
