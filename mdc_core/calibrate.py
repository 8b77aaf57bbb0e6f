"""How fast this machine is, by computing for a moment what a condensation computes for hours."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mdc_core.augment import Normalisation
from mdc_core.config import CondenseConfig, DataFacts
from mdc_core.estimate import Speed, network_cost
from mdc_core.networks import build_network
from mdc_core.precision import products
from mdc_core.recorder import Recorder
from mdc_core.streams import stream
from mdc_core.train import Trainer, draw_steps

_TRIES, _STEPS = 5, 2
"""Enough for a GPU to record the step and to repeat it."""


def calibrate(config: CondenseConfig, facts: DataFacts, device: torch.device | str) -> Speed:
    """The speed of `device` for the network of `config` on such data, from a few steps on random images.

    A step on one image tells what starting takes, and a convolution as wide as the network's the operations per
    second; what a step on a batch takes beyond both is put down to memory. The best of a few tries counts, after a
    first one to warm up.
    """
    device = torch.device(device)
    draws = stream(0, "calibrate")
    batch, width, side = config.batch_network, config.network.width, max(4, facts.image_size // 2)
    inputs = torch.randn(batch, width, side, side, generator=draws).to(device)
    weight = torch.randn(width, width, 3, 3, generator=draws).to(device)
    with products(config.precision):
        flops = (
            2 * 9 * width**2 * side**2 * batch / _best(lambda: F.conv2d(inputs, weight, padding=1), device)
        )
        start, taken = (
            _best(_training(config, facts, device, images), device) / _STEPS for images in (1, batch)
        )
    cost = network_cost(config.network, facts)
    rest = max(taken - start - cost.flops_per_image * batch / flops, 0.1 * taken)
    return Speed(flops, cost.activation_bytes * batch / rest, start)


def _training(
    config: CondenseConfig, facts: DataFacts, device: torch.device, images: int
) -> Callable[[], None]:
    """Some training steps on so many random images."""
    draws, channels, side = stream(0, "calibrate"), facts.channels, facts.image_size
    net = build_network(
        config.network, channels=channels, image_size=side, classes=len(facts.classes), generator=draws
    ).to(device)
    pixels = torch.randn(images, channels, side, side, generator=draws).to(device)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    trainer = Trainer(net, pixels, labels, Recorder(device), bf16=config.precision == "bf16")
    steps = draw_steps(
        [torch.arange(images)] * _STEPS,
        images,
        ops=config.network_augment(),
        cutmix=config.cutmix,
        lr=torch.full((_STEPS,), config.lr_network),
        generator=draws,
        normalisation=Normalisation((0.0,) * channels, (1.0,) * channels),
        image_size=side,
    )
    return lambda: trainer.run(steps)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Least wall seconds of one call, the device's queue included."""
    seconds = []
    for _ in range(1 + _TRIES):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])
