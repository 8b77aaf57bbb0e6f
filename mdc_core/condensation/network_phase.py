"""The network θ of an outer loop: its first weights, then training on real data between the tile updates (Algorithm 1).

The first weights are fresh, or those of one of a pool of networks in an early stage of training, changed at random:
such gradients teach more per iteration than those of a fresh network (arXiv 2212.06152).
"""

from __future__ import annotations

import torch

from mdc_core.compute.cuda_graph import Recorder, to_device
from mdc_core.compute.streams import stream
from mdc_core.condensation.pool import MemoryPools, Pool, PoolStore
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network, build_network, reset_parameters
from mdc_core.training.real_training import RealTraining


class NetworkPhase:
    """One network whose weights stay in their places from loop to loop, and its training."""

    def __init__(
        self, config: CondenseConfig, real: RealSet, recorder: Recorder, pools: PoolStore | None = None
    ) -> None:
        self._config, self._real = config, real
        self.net = fresh_network(config, real, outer=0)
        training = self._training = RealTraining(config, real, self.net, recorder)
        self._pool = Pool(config, real, self.net, pools or MemoryPools(), lambda: training)
        self._outer = 0

    def ready(self, outer: int, inner: int) -> None:
        """The network that update `inner` of loop `outer`, both 1-based, matches; updates come in order."""
        if inner == 1:
            self.fresh(outer)
        else:
            self.train(self._config.n_data, inner - 1)

    def fresh(self, outer: int) -> None:
        """The weights of an outer loop, and a new order of the images."""
        config = self._config
        if config.pool:
            number = int(torch.randint(config.pool, (), generator=stream(config.seed, "pool", outer)))
            self._take(number)
            change(self.net, config.pool_noise, stream(config.seed, "change", outer))
        else:
            reset_parameters(self.net, stream(config.seed, "weights", outer))
        self._training.begin(stream(config.seed, "order", outer))
        self._outer = outer
        self.train(config.early * len(self._real.labels), inner=0)

    def train(self, samples: int, inner: int) -> None:
        """See at least `samples` real images; epochs go on from call to call."""
        self._training.see(samples, stream(self._config.seed, "network", self._outer, inner))

    @torch.no_grad()
    def _take(self, number: int) -> None:
        """The weights of a network of the pool, which is trained when it is wanted first."""
        for parameter, value in zip(self.net.parameters(), self._pool.trained(number), strict=True):
            parameter.copy_(value)


@torch.no_grad()
def change(net: Network, size: float, generator: torch.Generator) -> None:
    """Move the weights of every filter in a random direction, by `size` times their norm (arXiv 2212.06152)."""
    for parameter in net.parameters():
        if parameter.ndim < 2:
            continue
        direction = to_device(torch.randn(parameter.shape, generator=generator), parameter.device)
        rows = parameter.flatten(1).norm(dim=1), direction.flatten(1).norm(dim=1)
        parameter.add_(direction * (size * rows[0] / rows[1]).view(-1, *[1] * (parameter.ndim - 1)))


def fresh_network(config: CondenseConfig, real: RealSet, outer: int) -> Network:
    """The network of an outer loop before any training."""
    net = build_network(
        config.network,
        channels=real.channels,
        image_size=real.image_size,
        classes=real.num_classes,
        generator=stream(config.seed, "weights", outer),
    )
    return net.to(real.device)
