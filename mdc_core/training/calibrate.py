"""How fast this machine is, by a short benchmark of what a condensation computes."""

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
"""Tries, and steps per try on a GPU: enough to warm up, record and replay the step. A CPU takes one step per try."""
_GPU_PRODUCTS = 50
"""Convolutions queued on a GPU per try."""
_FEW, _LEAST = 2, 4
"""Images of the small step, and at least of the large one. For a single image a CPU chooses slower convolutions."""
_CPU_SECONDS = 0.6
"""Seconds after which a measurement on a CPU is not repeated."""
_CPU_BYTES, _CPU_SIDE = 160 * 2**20, 128
"""Limits on a CPU: bytes of a batch's activations with their gradients, and the side of its images."""


def calibrate(config: CondenseConfig, facts: DataFacts, device: torch.device | str) -> Speed:
    """The speed of `device` for the network of `config` on such data, from a few steps on random images.

    Three measurements give three numbers:

    - a convolution as wide as the network's: operations per second;
    - a step on few images against a step on a batch: seconds per image, and seconds to start a step;
    - seconds per image beyond its operations: memory bandwidth.

    The best of a few tries counts, after one warm-up. On a CPU large images would take minutes, so images, batch and
    number of tries are limited to finish in 3 s.
    """
    device = torch.device(device)
    batch = config.batch_network
    if device.type == "cpu":
        least = 1 << config.network.depth  # the smallest image that a ConvNet can halve as often
        facts = facts.model_copy(update={"image_size": min(facts.image_size, max(_CPU_SIDE, least))})
        batch = min(batch, int(_CPU_BYTES / (2 * network_cost(config.network, facts).activation_bytes)))
    batch = max(batch, _LEAST)
    cost = network_cost(config.network, facts)
    steps = 1 if device.type == "cpu" else _GPU_STEPS
    with products(config.precision):
        flops = _convolution(config.network.width, max(4, facts.image_size // 2), batch, device)
        few, many = (
            _best(_training(config, facts, device, images, steps), device) / steps for images in (_FEW, batch)
        )
    # A step takes start + images · per_image seconds. The floors keep measurement noise from giving 0 or less.
    start = max(few - _FEW * max(0.0, many - few) / (batch - _FEW), 0.1 * few)
    rest = max(many - start - cost.flops_per_image * batch / flops, 0.1 * many)
    return Speed(flops, cost.activation_bytes * batch / rest, start)


def _convolution(width: int, side: int, batch: int, device: torch.device) -> float:
    """Operations per second of a 3×3 convolution between `width` channels."""
    draws = stream(0, "calibrate")
    inputs = torch.randn(batch, width, side, side, generator=draws).to(device)
    weight = torch.randn(width, width, 3, 3, generator=draws).to(device)
    # A GPU finishes one convolution in less time than its launch takes.
    times = 1 if device.type == "cpu" else _GPU_PRODUCTS

    def run() -> None:
        for _ in range(times):
            F.conv2d(inputs, weight, padding=1)

    return times * 2 * 9 * width**2 * side**2 * batch / _best(run, device)


def _training(
    config: CondenseConfig, facts: DataFacts, device: torch.device, images: int, count: int
) -> Callable[[], None]:
    """A call that takes `count` training steps on `images` random images."""
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
    """Shortest wall time of one call in seconds, including the device's queue."""
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
