"""Training on real images as condensation does it: between tile updates, and ahead for a pool of networks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder, to_device
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network
from mdc_core.training.steps import STEPS_AHEAD, Trainer, draw_steps, shuffled


class RealTraining:
    """Trains `net` in place, in shuffled epochs that continue from call to call."""

    def __init__(self, config: CondenseConfig, real: RealSet, net: Network, recorder: Recorder) -> None:
        self._config, self._real = config, real
        self.net = net
        self._rows = min(config.batch_network, len(real.labels))
        # Only the images of the next steps are on the device; all of them may not fit there.
        images = torch.empty(
            (STEPS_AHEAD * self._rows, *real.images.shape[1:]), dtype=torch.uint8, device=real.device
        )
        self._trainer = Trainer(
            net,
            images,
            torch.zeros(len(images), dtype=torch.int64, device=real.device),
            recorder,
            prepare=real.prepare,
            bf16=config.precision == "bf16",
        )
        self._batches: Iterator[Tensor] = iter(())

    def begin(self, order: torch.Generator) -> None:
        """Reset the optimiser, and shuffle the images by `order`."""
        self._trainer.optimiser.reset()
        self._batches = shuffled(len(self._real.labels), self._rows, order)

    def see(self, samples: int, generator: torch.Generator) -> None:
        """Train on at least `samples` images; `generator` draws their augmentation."""
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
