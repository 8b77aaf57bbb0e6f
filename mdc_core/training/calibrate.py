"""How fast this machine is, by computing for a moment what a condensation computes for hours."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.precision import products
from mdc_core.compute.streams import stream
from mdc_core.config.estimate import Speed, network_cost
from mdc_core.config.settings import CondenseConfig, DataFacts
from mdc_core.data.normalisation import Normalisation
from mdc_core.networks import build_network
from mdc_core.training.steps import Trainer, draw_steps

_TRIES, _GPU_STEPS = 5, 2
"""Enough for a GPU to record the step and to repeat it; a CPU has nothing to record, and takes one step a try."""
_GPU_PRODUCTS = 50
"""Convolutions that a GPU is given before anyone waits for it."""
_FEW, _LEAST = 2, 4
"""Images of the small step, and of the large one at least. A single image takes other, slower convolutions on a CPU."""
_CPU_SECONDS = 0.6
"""On a CPU no measurement is repeated when so much time is gone."""
_CPU_BYTES, _CPU_SIDE = 160 * 2**20, 128
"""On a CPU, what a batch's activations and their gradients may take, and the largest images that are computed with."""


def calibrate(config: CondenseConfig, facts: DataFacts, device: torch.device | str) -> Speed:
    """The speed of `device` for the network of `config` on such data, from a few steps on random images.

    A convolution as wide as the network's tells the operations per second, steps on few images and on a batch what an
    image takes and what starting does; what an image takes beyond its operations is put down to memory. The best of a
    few tries counts, after a first one to warm up. On a CPU, which large images would keep busy for minutes, images and
    batch are as small, and the tries are as few, as it takes to be done in 3 s.
    """
    device = torch.device(device)
    batch = config.batch_network
    if device.type == "cpu":
        deep = 1 << config.network.depth  # what a ConvNet needs at least
        facts = facts.model_copy(update={"image_size": min(facts.image_size, max(_CPU_SIDE, deep))})
        batch = min(batch, int(_CPU_BYTES / (2 * network_cost(config.network, facts).activation_bytes)))
    batch = max(batch, _LEAST)
    cost = network_cost(config.network, facts)
    steps = 1 if device.type == "cpu" else _GPU_STEPS
    with products(config.precision):
        flops = _convolution(config.network.width, max(4, facts.image_size // 2), batch, device)
        few, taken = (
            _best(_training(config, facts, device, images, steps), device) / steps for images in (_FEW, batch)
        )
    start = max(few - _FEW * max(0.0, taken - few) / (batch - _FEW), 0.1 * few)
    rest = max(taken - start - cost.flops_per_image * batch / flops, 0.1 * taken)
    return Speed(flops, cost.activation_bytes * batch / rest, start)


def _convolution(width: int, side: int, batch: int, device: torch.device) -> float:
    """Operations per second of a 3×3 convolution between `width` channels."""
    draws = stream(0, "calibrate")
    inputs = torch.randn(batch, width, side, side, generator=draws).to(device)
    weight = torch.randn(width, width, 3, 3, generator=draws).to(device)
    # A GPU is done with one sooner than it is told to begin.
    times = 1 if device.type == "cpu" else _GPU_PRODUCTS

    def run() -> None:
        for _ in range(times):
            F.conv2d(inputs, weight, padding=1)

    return times * 2 * 9 * width**2 * side**2 * batch / _best(run, device)


def _training(
    config: CondenseConfig, facts: DataFacts, device: torch.device, images: int, count: int
) -> Callable[[], None]:
    """So many training steps on so many random images."""
    draws, channels, side = stream(0, "calibrate"), facts.channels, facts.image_size
    net = build_network(
        config.network, channels=channels, image_size=side, classes=len(facts.classes), generator=draws
    ).to(device)
    pixels = torch.randn(images, channels, side, side, generator=draws).to(device)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    trainer = Trainer(net, pixels, labels, Recorder(device), bf16=config.precision == "bf16")
    steps = draw_steps(
        [torch.arange(images)] * count,
        images,
        ops=config.network_augment(),
        cutmix=config.cutmix,
        lr=torch.full((count,), config.lr_network),
        generator=draws,
        normalisation=Normalisation((0.0,) * channels, (1.0,) * channels),
        image_size=side,
    )
    return lambda: trainer.run(steps)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Least wall seconds of one call, the device's queue included."""
    seconds: list[float] = []
    while len(seconds) <= _TRIES:
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
        if device.type == "cpu" and len(seconds) > 1 and sum(seconds) > _CPU_SECONDS:
            break
    return min(seconds[1:])
