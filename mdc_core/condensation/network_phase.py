"""The network θ of an outer loop: its initial weights, then training on real images between updates (Algorithm 1).

The initial weights are random, or those of a network from a pool of early-stage networks, perturbed. Gradients of the
latter teach more per iteration (arXiv 2212.06152).
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
    """One network, whose weights keep their addresses from loop to loop, and its training."""

    def __init__(
        self, config: CondenseConfig, real: RealSet, recorder: Recorder, pools: PoolStore | None = None
    ) -> None:
        self._config, self._real = config, real
        self.net = initial_network(config, real, outer=0)
        training = self._training = RealTraining(config, real, self.net, recorder)
        self._pool = Pool(config, real, self.net, pools or MemoryPools(), lambda: training)
        self._outer = 0

    def ready(self, outer: int, inner: int) -> None:
        """Set the weights for update `inner` of loop `outer`, both 1-based; updates come in order."""
        if inner == 1:
            self.reset(outer)
        else:
            self.train(self._config.n_data, inner - 1)

    def reset(self, outer: int) -> None:
        """Start an outer loop: initial weights, a new order of the images, and early training if configured."""
        config = self._config
        if config.pool:
            number = int(torch.randint(config.pool, (), generator=stream(config.seed, "pool", outer)))
            self._load(number)
            perturb(self.net, config.pool_noise, stream(config.seed, "change", outer))
        else:
            reset_parameters(self.net, stream(config.seed, "weights", outer))
        self._training.begin(stream(config.seed, "order", outer))
        self._outer = outer
        self.train(config.early * len(self._real.labels), inner=0)

    def train(self, samples: int, inner: int) -> None:
        """Train on at least `samples` real images; epochs continue from call to call."""
        self._training.see(samples, stream(self._config.seed, "network", self._outer, inner))

    @torch.no_grad()
    def _load(self, number: int) -> None:
        """Load the weights of a network of the pool, which is trained on first use."""
        for parameter, value in zip(self.net.parameters(), self._pool.trained(number), strict=True):
            parameter.copy_(value)


@torch.no_grad()
def perturb(net: Network, size: float, generator: torch.Generator) -> None:
    """Move the weights of every filter in a random direction, by `size` times their norm (arXiv 2212.06152)."""
    for parameter in net.parameters():
        if parameter.ndim < 2:
            continue
        direction = to_device(torch.randn(parameter.shape, generator=generator), parameter.device)
        norms, lengths = parameter.flatten(1).norm(dim=1), direction.flatten(1).norm(dim=1)  # (out,) each
        parameter.add_(direction * (size * norms / lengths).view(-1, *[1] * (parameter.ndim - 1)))


def initial_network(config: CondenseConfig, real: RealSet, outer: int) -> Network:
    """A network with the random initial weights of an outer loop, on the device of `real`."""
    net = build_network(
        config.network,
        channels=real.channels,
        image_size=real.image_size,
        classes=real.num_classes,
        generator=stream(config.seed, "weights", outer),
    )
    return net.to(real.device)
