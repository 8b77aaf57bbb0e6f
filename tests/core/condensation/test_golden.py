"""One matching step against the figures that the published implementation gives for it, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mdc_core.compute.streams import stream
from mdc_core.condensation.gradient_matching import Match, RankGroups, match
from mdc_core.config.settings import NetworkConfig
from mdc_core.networks import Network, build_network

FILE = Path(__file__).parents[4] / "shared" / "golden" / "golden_step.npz"
RANKS, TILES, LABEL = 3, 4, 3
PUBLISHED_EPSILON = 1e-6
"""What the published cosine adds to the product of norms."""


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Tensor]:
    if not FILE.exists():
        pytest.skip("the figures of the published implementation are not here: ../shared/golden")
    with np.load(FILE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def network(golden: Mapping[str, Tensor]) -> Network:
    """ConvNet-D3 with the golden weights, whose names are those of the published code."""
    config = NetworkConfig(depth=3, width=16)
    net = build_network(
        config, channels=3, image_size=32, classes=10, generator=stream(0, "overwritten")
    ).double()
    layers = {f"blocks.{2 * i}": f"layers.conv.{i}" for i in range(3)}
    layers |= {f"blocks.{2 * i + 1}": f"layers.norm.{i}" for i in range(3)}
    layers["linear"] = "classifier"
    net.load_state_dict(
        {
            f"{ours}.{p}": golden[f"w/{theirs}.{p}"]
            for ours, theirs in layers.items()
            for p in ("weight", "bias")
        }
    )
    return net


def step(golden: Mapping[str, Tensor], metric: str = "mse", subset: int | None = None) -> Match:
    """The engine's step; pieces are image-major, which is our order of ranks and tiles."""
    weights = {RANKS: 1.0} | ({} if subset is None else {subset: 1.0})
    images = golden["pieces"].view(1, RANKS, TILES, 3, 32, 32)
    rank_groups = RankGroups(tuple(weights.items()))
    return match(network(golden), images, golden["real"][None], torch.tensor([LABEL]), rank_groups, metric)


@pytest.mark.parametrize(("subset", "name"), [(None, "base"), (1, "n1"), (2, "n2")])
def test_loss_and_gradient(golden: Mapping[str, Tensor], subset: int | None, name: str) -> None:
    actual = step(golden, subset=subset)
    torch.testing.assert_close(actual.loss[0], golden[f"loss_{name}"], rtol=1e-12, atol=0)
    grad, expected = actual.image_gradient.flatten(0, 2), golden[f"grad_{name}"]
    assert (grad - expected).norm() <= 1e-12 * expected.norm()


def test_feature_distances(golden: Mapping[str, Tensor]) -> None:
    actual = step(golden).feature_distances[0, :-1]
    torch.testing.assert_close(actual, golden["feature_distance"], rtol=1e-12, atol=0)


def test_loss_by_absolute_differences(golden: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(step(golden, "l1").loss[0], golden["loss_l1"], rtol=1e-12, atol=0)


def test_loss_by_cosine_differs_by_the_published_epsilon_alone(golden: Mapping[str, Tensor]) -> None:
    """48 rows of cosines in [-1, 1]: the epsilon takes at most its share of the smallest product of norms from each."""
    products, cosines = published_rows(golden)
    actual, expected = step(golden, "cos").loss[0], golden["loss_cos"]
    torch.testing.assert_close(actual, (1 - cosines).sum(), rtol=1e-12, atol=0)
    smaller = cosines * products / (products + PUBLISHED_EPSILON)
    torch.testing.assert_close(expected, (1 - smaller).sum(), rtol=1e-12, atol=0)
    assert 0 < abs(float(actual - expected)) <= PUBLISHED_EPSILON * float((cosines.abs() / products).sum())


def published_rows(golden: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Products of norms, and cosines, of the gradients of every output channel: real against synthetic."""
    net = network(golden)
    rows = []
    for images in (golden["real"], golden["pieces"]):
        target = torch.full((len(images),), LABEL)
        loss = torch.nn.functional.cross_entropy(net(images), target)
        weights = [parameter for parameter in net.parameters() if parameter.ndim == 4]
        rows.append([g.flatten(1) for g in torch.autograd.grad(loss, weights)])
    products = torch.cat([a.norm(dim=1) * b.norm(dim=1) for a, b in zip(*rows, strict=True)])
    dots = torch.cat([(a * b).sum(1) for a, b in zip(*rows, strict=True)])
    return products, dots / products
