"""The engine against the literal update, and against properties that both must have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mdc_core.compute.streams import stream
from mdc_core.condensation.gradient_matching import Match, RankGroups, distance, match
from mdc_core.config.settings import AugmentOp, NetworkConfig
from mdc_core.data.synthetic import decode
from mdc_core.errors import ConfigError
from mdc_core.networks import Network, build_network
from mdc_core.training import augment
from tests.core.literal import literal_feature_distances, literal_match
from tests.core.toys import TOY_NETWORK, toy_real

N, FACTOR, SIDE = 4, 2, 8


def match_tiles(
    net: Network,
    tiles: Tensor,
    real_images: Tensor,
    view: Callable[[Tensor], Tensor],
    rank_groups: RankGroups,
    metric: str,
) -> tuple[Match, Tensor]:
    """The engine's match of class 1, and its gradient carried back to the tiles."""
    leaf = tiles.clone().requires_grad_()
    images = view(decode(leaf.flatten(0, 1), SIDE)).view(1, N, FACTOR**2, 3, SIDE, SIDE)
    actual = match(net, images.detach(), view(real_images)[None], torch.tensor([1]), rank_groups, metric)
    return actual, torch.autograd.grad(images, leaf, actual.image_gradient)[0]


def setup(
    ops: tuple[AugmentOp, ...], network: NetworkConfig = TOY_NETWORK
) -> tuple[Network, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    real = toy_real()
    net = build_network(
        network, channels=3, image_size=SIDE, classes=2, generator=stream(1, "weights")
    ).double()
    tiles = torch.rand(N, FACTOR**2, 3, 4, 4, generator=stream(1, "tiles"), dtype=torch.float64)
    images = real.floats(real.class_index()[1][:8]).double()
    params = augment.draw(
        ops, 1, normalisation=real.normalisation, image_size=SIDE, generator=stream(1, "augment")
    )
    return net, tiles, images, lambda x: augment.apply(params, real.normalise(x))


@pytest.mark.parametrize("metric", ["mse", "l1", "cos"])
@pytest.mark.parametrize(
    ("weights", "frozen"),
    [
        ({4: 1.0}, 0),
        ({4: 1.0, 1: 1.0}, 0),
        ({4: 1.0, 3: 1.0}, 1),
        ({4: 1.0, 3: 1.0}, 2),
        ({4: 1.0, 1: 0.5, 2: 0.25, 3: 2.0}, 0),
    ],
)
def test_engine_equals_the_literal_update(metric: str, weights: dict[int, float], frozen: int) -> None:
    net, tiles, images, view = setup(("color", "crop", "cutout"))
    rank_groups = RankGroups(tuple(weights.items()), frozen, tuple(range(1, N)))
    actual, actual_grad = match_tiles(net, tiles, images, view, rank_groups, metric)
    loss, grad = literal_match(net, tiles, images, 1, view, weights, frozen, metric)
    torch.testing.assert_close(actual.loss[0], loss, rtol=1e-6, atol=0)
    assert (actual_grad - grad).norm() <= 1e-6 * grad.norm()
    features = torch.stack(literal_feature_distances(net, tiles, images, view))
    torch.testing.assert_close(actual.feature_distances[0], features, rtol=1e-6, atol=0)
    for n in range(1, N + 1):
        apart, _ = literal_match(net, tiles, images, 1, view, {n: 1.0}, 0, metric)
        torch.testing.assert_close(actual.gradient_distances[n][0], apart, rtol=1e-6, atol=0)


def test_a_network_of_the_usual_width_equals_the_literal_update() -> None:
    """As many channels as make the way back to the image another one (`networks.convolution`)."""
    net, tiles, images, view = setup(("color",), NetworkConfig(depth=2, width=32))
    actual = match_tiles(net, tiles, images, view, RankGroups(((N, 1.0), (2, 1.0)), 1), "mse")[1]
    grad = literal_match(net, tiles, images, 1, view, {N: 1.0, 2: 1.0}, 1, "mse")[1]
    assert (actual - grad).norm() <= 1e-6 * grad.norm()


@pytest.mark.parametrize("ops", [("flip", "color", "scale"), ("rotate", "cutout"), ()])
def test_cuts_do_not_change_the_result(ops: tuple[AugmentOp, ...]) -> None:
    net, tiles, images, view = setup(ops)

    def cut_at(*sizes: int) -> tuple[Tensor, Tensor]:
        actual, grad = match_tiles(net, tiles, images, view, RankGroups(((N, 1.0),), measured=sizes), "mse")
        return actual.loss, grad

    for one, many in zip(cut_at(), cut_at(*range(1, N)), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", ["mse", "l1", "cos"])
@pytest.mark.parametrize("network", [TOY_NETWORK, NetworkConfig(name="resnet_ap", width=4)])
def test_classes_at_once_are_classes_one_by_one(network: NetworkConfig, metric: str) -> None:
    side = 16
    net = build_network(network, channels=3, image_size=side, classes=3, generator=stream(1, "w")).double()
    draws = stream(1, "images")
    images = torch.randn(3, N, 1, 3, side, side, generator=draws, dtype=torch.float64)
    real_images = torch.randn(3, 5, 3, side, side, generator=draws, dtype=torch.float64)
    rank_groups, labels = RankGroups(((N, 1.0), (2, 0.5)), 1, (1, 3)), torch.tensor([2, 0, 1])
    batched = match(net, images, real_images, labels, rank_groups, metric)
    for i in range(3):
        alone = match(net, images[i : i + 1], real_images[i : i + 1], labels[i : i + 1], rank_groups, metric)
        for name in ("loss", "image_gradient", "feature_distances"):
            torch.testing.assert_close(getattr(batched, name)[i : i + 1], getattr(alone, name))
        for n, value in alone.gradient_distances.items():
            torch.testing.assert_close(batched.gradient_distances[n][i : i + 1], value)


def test_tile_gradient_is_the_derivative_of_the_loss() -> None:
    """A finite difference of the base and subset loss along a random direction."""
    net, tiles, images, view = setup(("color",))

    rank_groups = RankGroups(((N, 1.0), (2, 1.0)))

    def loss(at: Tensor) -> Tensor:
        return match_tiles(net, at, images, view, rank_groups, "mse")[0].loss[0]

    _, grad = match_tiles(net, tiles, images, view, rank_groups, "mse")
    direction = torch.randn(tiles.shape, generator=stream(2, "direction"), dtype=torch.float64)
    step = 1e-6
    measured = (loss(tiles + step * direction) - loss(tiles - step * direction)) / (2 * step)
    torch.testing.assert_close((grad * direction).sum(), measured, rtol=1e-5, atol=0)


def test_equal_gradients_are_at_distance_zero() -> None:
    gradient = torch.randn(2, 1, 4, 3, 3, 3, dtype=torch.float64)
    for metric in ("mse", "l1", "cos"):
        actual = distance(metric, gradient, gradient)
        torch.testing.assert_close(actual, torch.zeros(2, 1, dtype=torch.float64), atol=1e-12, rtol=0)


def test_batch_statistics_are_refused() -> None:
    net, tiles, images, view = setup(())
    net.blocks[1] = nn.BatchNorm2d(4)  # type: ignore[assignment,operator]
    with pytest.raises(ConfigError, match=r"blocks\.1 \(BatchNorm2d\) normalises over the batch"):
        match_tiles(net, tiles, images, view, RankGroups(((N, 1.0),)), "mse")


def test_no_gradient_is_left_behind() -> None:
    net, tiles, images, view = setup(("color", "crop", "cutout"))
    match_tiles(net, tiles, images, view, RankGroups(((N, 1.0), (1, 1.0))), "mse")
    assert tiles.grad is None
    assert all(p.grad is None for p in net.parameters())
