"""The network θ of an outer loop: its first weights, then training on real data between the tile updates (Algorithm 1).

The first weights are fresh, or those of one of a pool of networks in an early stage of training, changed at random:
such gradients teach more per iteration than those of a fresh network (arXiv 2212.06152).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mdc_core.config import CondenseConfig
from mdc_core.data import RealSet
from mdc_core.networks import Network, build_network, reset_parameters
from mdc_core.recorder import Recorder, to_device
from mdc_core.streams import stream
from mdc_core.train import STEPS_AHEAD, Trainer, draw_steps, shuffled


class NetworkPhase:
    """One network whose weights stay in their places from loop to loop, and its training."""

    def __init__(self, config: CondenseConfig, real: RealSet, recorder: Recorder) -> None:
        self._config, self._real = config, real
        self.net = fresh_network(config, real, outer=0)
        self._rows = min(config.batch_network, len(real.labels))
        store = torch.empty(
            (STEPS_AHEAD * self._rows, *real.images.shape[1:]), dtype=torch.uint8, device=real.device
        )
        self._trainer = Trainer(
            self.net,
            store,
            torch.zeros(len(store), dtype=torch.int64, device=real.device),
            recorder,
            prepare=real.prepare,
            bf16=config.precision == "bf16",
        )
        self._outer = 0
        self._batches: Iterator[Tensor] = iter(())
        self._pool: dict[int, list[Tensor]] = {}

    def fresh(self, outer: int) -> None:
        """The weights of an outer loop, and a new order of the images."""
        config, samples = self._config, len(self._real.labels)
        if config.pool:
            number = int(torch.randint(config.pool, (), generator=stream(config.seed, "pool", outer)))
            self._take(number)
            change(self.net, config.pool_noise, stream(config.seed, "change", outer))
        else:
            reset_parameters(self.net, stream(config.seed, "weights", outer))
        self._trainer.optimiser.reset()
        self._batches = shuffled(samples, self._rows, stream(config.seed, "order", outer))
        self._outer = outer
        self.train(config.early * samples, inner=0)

    def train(self, samples: int, inner: int) -> None:
        """See at least `samples` real images; epochs go on from call to call."""
        self._see(samples, stream(self._config.seed, "network", self._outer, inner))

    @torch.no_grad()
    def _take(self, number: int) -> None:
        """The weights of a network of the pool, which is trained when it is wanted first."""
        parameters = list(self.net.parameters())
        if number not in self._pool:
            seed = self._config.seed
            reset_parameters(self.net, stream(seed, "pool weights", number))
            self._trainer.optimiser.reset()
            self._batches = shuffled(len(self._real.labels), self._rows, stream(seed, "pool order", number))
            with torch.enable_grad():
                self._see(self._config.pool_samples, stream(seed, "pool training", number))
            self._pool[number] = [parameter.clone() for parameter in parameters]
        for parameter, value in zip(parameters, self._pool[number], strict=True):
            parameter.copy_(value)

    def _see(self, samples: int, generator: torch.Generator) -> None:
        while samples > 0:
            ahead: list[Tensor] = []
            while samples > 0 and len(ahead) < STEPS_AHEAD:
                ahead.append(next(self._batches))
                samples -= len(ahead[-1])
            self._run(ahead, generator)

    def _run(self, batches: list[Tensor], generator: torch.Generator) -> None:
        config, real, trainer = self._config, self._real, self._trainer
        chosen = torch.cat(batches)
        steps = draw_steps(
            torch.split_with_sizes(torch.arange(len(chosen)), [len(batch) for batch in batches]),
            self._rows,
            ops=config.network_augment(),
            cutmix=config.cutmix,
            normalisation=real.normalisation,
            image_size=real.image_size,
            lr=torch.full((len(batches),), config.lr_network),
            generator=generator,
        )
        trainer.images[: len(chosen)].copy_(real.take(chosen))
        trainer.labels[: len(chosen)].copy_(real.labels[to_device(chosen, real.device)])
        trainer.run(steps)


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
