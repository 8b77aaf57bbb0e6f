"""Feature matching against the literal loss, and against properties that both must have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mdc_core.compute.streams import stream
from mdc_core.condensation.feature_matching import match_features
from mdc_core.condensation.gradient_matching import Match, RankGroups
from mdc_core.config.settings import NetworkConfig
from mdc_core.data.synthetic import decode
from mdc_core.networks import Network, build_network
from mdc_core.training import augment
from tests.core.literal import literal_feature_distances, literal_feature_match
from tests.core.toys import TOY_NETWORK, toy_real

N, FACTOR, SIDE = 4, 2, 16
NETWORKS = [TOY_NETWORK, NetworkConfig(name="resnet_ap", width=4)]
View = Callable[[Tensor], Tensor]


class Setup:
    """Two networks, the tiles and real images of two classes, and an augmentation for each class."""

    def __init__(self, network: NetworkConfig) -> None:
        real = toy_real(side=SIDE)
        self.net, self.trained = (
            build_network(
                network, channels=3, image_size=SIDE, classes=2, generator=stream(seed, "weights")
            ).double()
            for seed in (1, 2)
        )
        shape = (2, N, FACTOR**2, 3, SIDE // FACTOR, SIDE // FACTOR)
        self.tiles = torch.rand(shape, generator=stream(1, "tiles"), dtype=torch.float64)
        self.images = [real.floats(positions[:8]).double() for positions in real.class_index()]
        self.views: list[View] = []
        for label in (0, 1):
            params = augment.draw(
                ("color", "crop", "cutout"),
                1,
                normalisation=real.normalisation,
                image_size=SIDE,
                generator=stream(1, "augment", label),
            )
            self.views.append(lambda x, params=params: augment.apply(params, real.normalise(x)))  # type: ignore[misc]

    def matched(
        self, rank_groups: RankGroups, calibration: float = 0.0, decay: float = 1.0
    ) -> tuple[Match, Tensor]:
        """The engine's match of both classes at once, and its gradient carried back to the tiles."""
        leaf = self.tiles.clone().requires_grad_()
        by_class = [view(decode(own.flatten(0, 1), SIDE)) for view, own in zip(self.views, leaf, strict=True)]
        images = torch.stack(by_class).view(2, N, FACTOR**2, 3, SIDE, SIDE)
        real = torch.stack([view(own) for view, own in zip(self.views, self.images, strict=True)])
        actual = match_features(
            self.net,
            self.trained,
            images.detach(),
            real,
            torch.tensor([0, 1]),
            rank_groups,
            calibration=calibration,
            decay=decay,
        )
        return actual, torch.autograd.grad(images, leaf, actual.image_gradient)[0]


@pytest.mark.parametrize("network", NETWORKS, ids=["convnet", "resnet"])
@pytest.mark.parametrize(
    ("weights", "frozen"),
    [
        ({4: 1.0}, 0),
        ({4: 1.0, 2: 1.0}, 0),
        ({4: 1.0, 3: 1.0}, 2),
        ({4: 1.0, 1: 1.0, 2: 0.5, 3: 1 / 3}, 0),
        ({4: 1.0, 1: 1.0, 2: 0.5, 3: 1 / 3}, 1),
    ],
)
@pytest.mark.parametrize(("calibration", "decay"), [(0.0, 1.0), (0.3, 1.0), (0.3, 0.0), (2.0, 2.5)])
def test_features_are_matched_as_the_literal_loss_says(
    network: NetworkConfig, weights: dict[int, float], frozen: int, calibration: float, decay: float
) -> None:
    case = Setup(network)
    actual, grads = case.matched(RankGroups(tuple(weights.items()), frozen), calibration, decay)
    for label in (0, 1):
        inputs = case.tiles[label], case.images[label], label, case.views[label]
        loss, grad = literal_feature_match(
            case.net, case.trained, *inputs, weights, frozen, calibration, decay
        )
        torch.testing.assert_close(actual.loss[label], loss, rtol=1e-6, atol=0)
        assert (grads[label] - grad).norm() <= 1e-6 * grad.norm()
        features = literal_feature_distances(
            case.net, case.tiles[label], case.images[label], case.views[label]
        )
        torch.testing.assert_close(actual.feature_distances[label], torch.stack(features), rtol=1e-6, atol=0)


def test_all_subsets_are_the_sum_of_each() -> None:
    case = Setup(TOY_NETWORK)
    weights = {1: 0.5, 2: 0.0, 3: 2.0, 4: 1.0}
    whole, grads = case.matched(RankGroups(tuple(weights.items())))
    loss, grad = torch.zeros(2, dtype=torch.float64), torch.zeros_like(grads)
    for n, weight in weights.items():
        apart, own = case.matched(RankGroups(((n, 1.0),)))
        loss += weight / 3.5 * apart.loss
        grad += weight / 3.5 * own
    torch.testing.assert_close(whole.loss, loss)
    torch.testing.assert_close(grads, grad)


def test_random_real_images_are_a_distance_of_one_nth_away() -> None:
    """The unit of the loss: what n random images of the real batch cost, with replacement, per block."""
    case = Setup(TOY_NETWORK)
    real = torch.rand(1, 64, 3, SIDE, SIDE, generator=stream(0, "real"), dtype=torch.float64)
    losses = []
    for draw in range(200):
        chosen = torch.randint(64, (N,), generator=stream(draw, "chosen"))
        images = real[:, chosen].unsqueeze(2)
        actual = match_features(
            case.net,
            case.trained,
            images,
            real,
            torch.tensor([0]),
            RankGroups(((2, 1.0),)),
            calibration=0.0,
            decay=1.0,
        )
        losses.append(float(actual.loss))
    assert sum(losses) / len(losses) == pytest.approx(2 * 1 / 2, rel=0.05)  # two blocks, n = 2


@pytest.mark.parametrize("alike", [1, 3])
def test_real_images_without_variance_give_finite_numbers(alike: int) -> None:
    case = Setup(TOY_NETWORK)
    case.images = [own[:1].repeat(alike, 1, 1, 1) for own in case.images]
    actual, grads = case.matched(RankGroups(((N, 1.0), (1, 1.0))), calibration=0.1)
    assert actual.loss.isfinite().all()
    assert grads.isfinite().all()
    assert grads.any()


def test_real_images_without_features_give_numbers_of_a_usual_size() -> None:
    """Norms make nothing of an image of one colour; rounding is no unit."""
    case = Setup(TOY_NETWORK)
    images = torch.rand(1, N, 1, 3, SIDE, SIDE, generator=stream(0, "images"))
    actual = match_features(
        case.net.float(),
        case.trained.float(),
        images,
        torch.zeros(1, 4, 3, SIDE, SIDE),
        torch.tensor([0]),
        RankGroups(((N, 1.0),)),
        calibration=0.0,
        decay=1.0,
    )
    assert 0 < float(actual.loss) < 1e7
    assert actual.image_gradient.isfinite().all()


def test_parameters_are_left_alone() -> None:
    case = Setup(TOY_NETWORK)
    before = [parameter.clone() for net in (case.net, case.trained) for parameter in net.parameters()]
    case.matched(RankGroups(((N, 1.0),)), calibration=1.0)
    parameters = [parameter for net in (case.net, case.trained) for parameter in net.parameters()]
    assert all(parameter.grad is None for parameter in parameters)
    assert all(map(torch.equal, before, parameters))


def test_block_outputs_end_with_the_features() -> None:
    for network, sides in ((NETWORKS[0], [8, 4]), (NETWORKS[1], [16, 16, 8, 4, 2])):
        net: Network = Setup(network).net
        images = torch.rand(3, 3, SIDE, SIDE, dtype=torch.float64)
        outputs = net.block_outputs(images)
        assert [output.shape[-1] for output in outputs] == sides
        torch.testing.assert_close(net.head(outputs[-1]), net(images))
