"""ResNet10-AP against a literal one of torch's own layers, which is written down from the published network."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdc_core.compute.streams import stream
from mdc_core.condensation.gradient_matching import RankGroups, match
from mdc_core.config.settings import NetworkConfig
from mdc_core.networks import Network, build_network
from tests.core.literal import literal_match

SIDES = (16, 64, 65, 72, 128, 129, 136)
"""Both ends of every stem's range, and sides that no pool divides evenly."""


def build(side: int, width: int = 4) -> Network:
    config = NetworkConfig(name="resnet_ap", width=width)
    net = build_network(config, channels=3, image_size=side, classes=5, generator=stream(0, "weights"))
    return net.double()


class LiteralBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(after, after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(after, after)
        self.stride = stride
        if stride > 1:
            self.across = nn.Conv2d(before, after, 1, bias=False)
            self.across_norm = nn.GroupNorm(after, after)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.first_norm(self.first(x)))
        if self.stride > 1:
            out = F.avg_pool2d(out, self.stride)
            x = self.across_norm(F.avg_pool2d(self.across(x), self.stride))
        return torch.relu(self.second_norm(self.second(out)) + x)


class LiteralResNet10AP(nn.Module):
    def __init__(self, side: int, width: int, classes: int) -> None:
        super().__init__()
        self.pool = 1
        kernel = 3
        if side > 64:
            self.pool = 2
        if side > 128:
            kernel, self.pool = 7, 4
        self.stem = nn.Conv2d(3, width, kernel, padding=(kernel - 1) // 2, bias=False)
        self.stem_norm = nn.GroupNorm(width, width)
        widths = (width, width, 2 * width, 4 * width, 8 * width)
        self.blocks = nn.ModuleList(
            LiteralBlock(before, after, 1 if number == 0 else 2)
            for number, (before, after) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem_norm(self.stem(x)))
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        for block in self.blocks:
            x = block(x)
        return x, self.head(F.avg_pool2d(x, x.shape[-1]).flatten(1))


@pytest.mark.parametrize("side", SIDES)
def test_features_and_logits_equal_the_literal_ones(side: int) -> None:
    net, literal = build(side), LiteralResNet10AP(side, 4, 5).double()
    with torch.no_grad():
        for number, (ours, theirs) in enumerate(zip(net.parameters(), literal.parameters(), strict=True)):
            if ours.ndim == 1:  # scales and shifts that are not 1 and 0
                ours.normal_(generator=stream(number, "affine"))
            theirs.copy_(ours)
    images = torch.randn(2, 3, side, side, generator=stream(0, "images"), dtype=torch.float64)
    features, logits = literal(images)
    torch.testing.assert_close(net.features(images), features, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(net(images), logits, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("side", [16, 72, 136])
def test_matching_equals_the_literal_update(side: int) -> None:
    """Every stem: the loss of two subsets, and its gradient by a plain second backward pass."""
    net, draws = build(side), stream(0, "images")
    tiles = torch.randn(3, 1, 3, side, side, generator=draws, dtype=torch.float64)
    real_images = torch.randn(4, 3, side, side, generator=draws, dtype=torch.float64)
    rank_groups = RankGroups(((3, 1.0), (1, 1.0)))
    actual = match(net, tiles[None], real_images[None], torch.tensor([1]), rank_groups, "mse")
    loss, grad = literal_match(net, tiles, real_images, 1, lambda x: x, dict(rank_groups.weights), 0, "mse")
    torch.testing.assert_close(actual.loss[0], loss, rtol=1e-6, atol=0)
    assert (actual.image_gradient[0] - grad).norm() <= 1e-6 * grad.norm()


@pytest.mark.parametrize("side", [64, 128, 129])
def test_initial_weights_have_the_published_moments(side: int) -> None:
    """Convolutions: N(0, 2 / (k² · out)). The head: U(-b, b) with b = 1 / √in. Norms: 1 and 0."""
    net = build(side, width=16).requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            spread = (2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)) ** 0.5
            weight, few = module.weight / spread, module.weight.numel() ** -0.5
            assert abs(float(weight.mean())) < 4 * few
            assert float(weight.std()) == pytest.approx(1, abs=3 * few)
            assert float(weight.pow(4).mean()) == pytest.approx(3, abs=40 * few)  # 1.8 of a uniform one
        elif isinstance(module, nn.GroupNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            assert 0.95 * bound < float(module.weight.abs().max()) <= bound
            assert float(module.bias.abs().max()) <= bound
