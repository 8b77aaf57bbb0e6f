"""The engine against the literal update, and against properties that both must have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mdc_core import augment
from mdc_core.matching import ClassMatch, distance, match_class
from mdc_core.networks import Network, build_network
from mdc_core.streams import stream
from mdc_core.synthetic import decode
from tests.core.literal import literal_feature_distances, literal_match
from tests.core.toys import TOY_NETWORK, toy_real

N, FACTOR, SIDE = 4, 2, 8


def match_tiles(
    net: Network, tiles: Tensor, real_images: Tensor, view: Callable[[Tensor], Tensor], **how: object
) -> tuple[ClassMatch, Tensor]:
    """The engine's match, and its gradient carried back to the tiles."""
    leaf = tiles.clone().requires_grad_()
    images = view(decode(leaf.flatten(0, 1), SIDE)).view(N, FACTOR**2, 3, SIDE, SIDE)
    match = match_class(net, images.detach(), view(real_images), 1, **how)  # type: ignore[arg-type]
    return match, torch.autograd.grad(images, leaf, match.image_gradient)[0]


def setup(
    ops: tuple[augment.AugmentOp, ...],
) -> tuple[Network, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    real = toy_real()
    net = build_network(
        TOY_NETWORK, channels=3, image_size=SIDE, classes=2, generator=stream(1, "weights")
    ).double()
    tiles = torch.rand(N, FACTOR**2, 3, 4, 4, generator=stream(1, "tiles"), dtype=torch.float64)
    images = real.floats(real.class_index()[1][:8]).double()
    params = augment.draw(ops, 1, channels=3, image_size=SIDE, generator=stream(1, "augment"))
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
    found, found_slope = match_tiles(
        net, tiles, images, view, weights=weights, frozen=frozen, metric=metric, extra_cuts=range(1, N)
    )
    loss, slope = literal_match(net, tiles, images, 1, view, weights, frozen, metric)
    torch.testing.assert_close(found.loss, loss, rtol=1e-6, atol=0)
    assert (found_slope - slope).norm() <= 1e-6 * slope.norm()
    features = torch.stack(literal_feature_distances(net, tiles, images, view))
    torch.testing.assert_close(found.feature_distances, features, rtol=1e-6, atol=0)
    for n in range(1, N + 1):
        apart, _ = literal_match(net, tiles, images, 1, view, {n: 1.0}, 0, metric)
        torch.testing.assert_close(found.gradient_distances[n], apart, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ops", [("flip", "color", "scale"), ("rotate", "cutout"), ()])
def test_cuts_do_not_change_the_result(ops: tuple[augment.AugmentOp, ...]) -> None:
    net, tiles, images, view = setup(ops)

    def match(cuts: range) -> tuple[Tensor, Tensor]:
        how = {"weights": {N: 1.0}, "frozen": 0, "metric": "mse", "extra_cuts": cuts}
        found, slope = match_tiles(net, tiles, images, view, **how)
        return found.loss, slope

    for one, many in zip(match(range(0)), match(range(1, N)), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-12)


def test_tile_gradient_is_the_derivative_of_the_loss() -> None:
    """A finite difference of the base and subset loss along a random direction."""
    net, tiles, images, view = setup(("color",))

    how = {"weights": {N: 1.0, 2: 1.0}, "frozen": 0, "metric": "mse"}

    def loss(at: Tensor) -> Tensor:
        return match_tiles(net, at, images, view, **how)[0].loss

    _, slope = match_tiles(net, tiles, images, view, **how)
    direction = torch.randn(tiles.shape, generator=stream(2, "direction"), dtype=torch.float64)
    step = 1e-6
    measured = (loss(tiles + step * direction) - loss(tiles - step * direction)) / (2 * step)
    torch.testing.assert_close((slope * direction).sum(), measured, rtol=1e-5, atol=0)


def test_equal_gradients_are_at_distance_zero() -> None:
    gradient = [torch.randn(4, 3, 3, 3, dtype=torch.float64)]
    for metric in ("mse", "l1", "cos"):
        assert float(distance(metric, gradient, gradient)) == pytest.approx(0, abs=1e-12)


def test_no_gradient_is_left_behind() -> None:
    net, tiles, images, view = setup(("color", "crop", "cutout"))
    match_tiles(net, tiles, images, view, weights={N: 1.0, 1: 1.0}, frozen=0, metric="mse")
    assert tiles.grad is None
    assert all(p.grad is None for p in net.parameters())
