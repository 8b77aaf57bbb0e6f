"""Training steps against torch's own, and the recording that they are written for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.streams import stream
from mdc_core.config.settings import EvaluateConfig
from mdc_core.networks import Network, build_network
from mdc_core.training.steps import Steps, Trainer, draw_epoch
from tests.core.literal import literal_network, literal_training
from tests.core.toys import TOY_NETWORK, TOY_NORMALISATION

COUNT = 11


def toy_network(seed: int = 0) -> Network:
    return build_network(
        TOY_NETWORK, channels=3, image_size=8, classes=2, generator=stream(seed, "w")
    ).double()


def toy_images() -> tuple[Tensor, Tensor]:
    images = torch.randn(COUNT, 3, 8, 8, generator=stream(0, "images"), dtype=torch.float64)
    return images, torch.arange(COUNT) % 2


def epochs(recipe: EvaluateConfig, seed: int = 0) -> list[Steps]:
    generator = stream(seed, "steps")
    return [
        steps
        for epoch in range(1, recipe.epochs + 1)
        for steps in draw_epoch(COUNT, epoch, recipe, TOY_NORMALISATION, 8, generator)
    ]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("cutmix", [0.0, 0.5, 1.0])
def test_training_equals_torchs(cutmix: float, fixed: bool) -> None:
    """Padding, which the last batch of an epoch has, does not count; where shapes need not stay, it is left out."""
    recipe = EvaluateConfig(epochs=4, batch_size=4, cutmix=cutmix, lr=0.1, network=TOY_NETWORK)
    net, (images, labels) = toy_network(), toy_images()
    literal = literal_network(net)
    recorder = Recorder(torch.device("cpu"))
    recorder.static_shapes = fixed
    trainer = Trainer(net, images, labels, recorder)
    blocks, rows = epochs(recipe), []
    net.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    for steps in blocks:
        trainer.run(steps)
    assert rows == 4 * [4, 4, 4 if fixed else 3]
    literal_training(literal, images, labels, blocks)
    for actual, expected in zip(net.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
