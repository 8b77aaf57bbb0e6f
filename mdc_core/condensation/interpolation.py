"""Networks interpolated between their initial and their trained weights, for feature matching.

w = share · initial + (1 - share) · trained stands for every stage of a training, without training anything
(DANCE, arXiv 2406.01063).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.streams import stream
from mdc_core.condensation.network_phase import initial_network
from mdc_core.condensation.pool import Pool, PoolStore, set_initial_weights
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network
from mdc_core.training.real_training import RealTraining


class Interpolation(Network):
    """A network with interpolated weights, and the same one with trained weights. Neither is differentiated."""

    def __init__(self, interpolated: Network, trained: Network) -> None:
        super().__init__()
        self.interpolated, self.trained = interpolated, trained
        self.requires_grad_(False)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """Block outputs of the interpolated network."""
        return self.interpolated.block_outputs(images)

    def head(self, features: Tensor) -> Tensor:
        """Logits of the interpolated network."""
        return self.interpolated.head(features)


class InterpolatedNetworks:
    """A random network of the pool, interpolated at random, for every inner iteration; weights keep their addresses."""

    def __init__(self, config: CondenseConfig, real: RealSet, recorder: Recorder, pools: PoolStore) -> None:
        self._config = config
        self.net = Interpolation(*(initial_network(config, real, outer=0) for _ in range(2)))
        # Built on first use: all networks may be in the store already.
        training = cache(lambda: RealTraining(config, real, initial_network(config, real, outer=0), recorder))
        self._pool = Pool(config, real, self.net.interpolated, pools, training)
        self._initial: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def ready(self, outer: int, inner: int) -> None:
        """Draw the network for update `inner` of loop `outer`, both 1-based."""
        draws = stream(self._config.seed, "interpolation", outer, inner)
        number = int(torch.randint(self._config.pool, (), generator=draws))
        share = float(torch.rand((), generator=draws))
        trained, initial = self._pool.trained(number), self._initial_weights(number)
        _set_weights(self.net.trained, trained)
        _set_weights(self.net.interpolated, torch._foreach_lerp(trained, initial, share))

    def _initial_weights(self, number: int) -> list[Tensor]:
        if number not in self._initial:
            set_initial_weights(self._config, self.net.interpolated, number)
            self._initial[number] = [parameter.clone() for parameter in self.net.interpolated.parameters()]
        return self._initial[number]


def _set_weights(net: Network, weights: Iterable[Tensor]) -> None:
    for parameter, weight in zip(net.parameters(), weights, strict=True):
        parameter.copy_(weight)
