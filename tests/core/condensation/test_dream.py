"""DREAM: representatives as real batches and as first tiles, then IDC, against a literal transcription."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.streams import stream
from mdc_core.condensation.condense import condense, start_state
from mdc_core.condensation.iteration import chunks, draw_iteration, match_classes
from mdc_core.condensation.mls import start
from mdc_core.condensation.network_phase import NetworkPhase, initial_network
from mdc_core.condensation.real_batches import RepresentativeBatches
from mdc_core.data.real_set import RealSet
from mdc_core.data.synthetic import shrink
from mdc_core.errors import ConfigError
from mdc_core.networks import Network
from mdc_core.training import augment
from tests.core.compute.test_kmeans import literal_kmeans
from tests.core.literal import literal_match, literal_network
from tests.core.toys import DREAM, toy_config, toy_real


@pytest.fixture
def real() -> RealSet:
    """Enough images per class that hardly any cluster has two, which are equally close to their mean."""
    return toy_real(per_class=64)


def literal_representatives(
    net: Network, images: Tensor, count: int, draws: torch.Generator
) -> tuple[int, ...]:
    """Of the images of one class (M, ch, H, H), normalised: for every centroid the closest that is left."""
    features = literal_network(net).features(images).flatten(1).detach()
    left, chosen = list(range(len(images))), []
    for centroid in literal_kmeans(features, count, draws):
        nearest = min(left, key=lambda i: float(((features[i] - centroid) ** 2).sum()))
        left.remove(nearest)
        chosen.append(nearest)
    return tuple(chosen)


def test_a_step_is_the_literal_one(real: RealSet) -> None:
    """Loss and gradient of the tiles, in float64."""
    config = toy_config(**DREAM)
    phase = NetworkPhase(config, real, Recorder(real.device))
    phase.reset(1)
    draws = draw_iteration(config, real, RepresentativeBatches(config, real, phase.net), 1, 1)
    tiles = start_state(config, real).tiles.double()
    net = phase.net.double()
    batches = real.normalise(real.floats(draws.real).double())
    plan = chunks(config, real, start(config, 2), False, per_batch=2)
    actual = match_classes(config, real, net, tiles, draws, batches, plan, False)
    begin = stream(config.seed, "clusters", 1, 1)
    for label, positions in enumerate(real.class_index()):
        images = real.floats(positions).double()
        order = literal_representatives(net, real.normalise(images), 4, begin)
        assert draws.real.view(2, 4)[label].tolist() == positions[list(order)].tolist()
        params = draws.params.rows(torch.tensor([label]))
        loss, gradient = literal_match(
            net,
            tiles[:, label],
            images[list(order)],
            label,
            lambda x, params=params: augment.apply(params, real.normalise(x)),  # type: ignore[misc]
            {3: 1.0, 1: 1.0},
            0,
            "mse",
        )
        torch.testing.assert_close(actual.loss[label], loss, rtol=1e-6, atol=0)
        error = (actual.gradient[:, label] - gradient).norm()
        assert error <= 1e-6 * gradient.norm()


def test_tiles_start_from_representatives_of_an_untrained_network(real: RealSet) -> None:
    config = toy_config(**DREAM, ipc=1)
    net, begin = initial_network(config, real, outer=0), stream(config.seed, "init")
    tiles = start_state(config, real).tiles
    for label, positions in enumerate(real.class_index()):
        images = real.floats(positions)
        order = literal_representatives(net, real.normalise(images), 4, begin)
        assert torch.equal(tiles[:, label].flatten(0, 1), shrink(images[list(order)], 4))


def test_classes_are_clustered_anew_after_some_iterations(real: RealSet) -> None:
    config = toy_config(**DREAM, inner_iterations=5)
    net = initial_network(config, real, outer=1)
    batches = RepresentativeBatches(config, real, net)
    drawn = []
    for inner in range(1, 6):
        drawn.append(torch.cat(batches.draw(1, inner, torch.Generator())))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=stream(0, "change", inner)))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[2], drawn[4])


@pytest.mark.parametrize("subset_loss", ["mls", "none", "all"])
def test_a_resumed_run_is_the_whole_one(real: RealSet, subset_loss: str) -> None:
    config = toy_config(**DREAM, subset_loss=subset_loss, outer_loops=4, inner_iterations=3)
    whole = list(condense(config, real))
    rest = list(condense(config, real, resume=whole[1].state))
    assert torch.equal(rest[-1].state.tiles, whole[-1].state.tiles)
    assert not torch.equal(whole[0].state.tiles, whole[-1].state.tiles)


def test_it_refuses_what_it_cannot_do(real: RealSet) -> None:
    with pytest.raises(ConfigError, match=r"clusters each class into batch_real = 65 parts.*at most 64"):
        next(condense(toy_config(**DREAM | {"batch_real": 65}), real))
    with pytest.raises(ConfigError, match=r"needs .* = 80 of each class"):
        next(condense(toy_config(**DREAM, ipc=20), real))
    with pytest.raises(ValueError, match="start_index skips random real images"):
        toy_config(**DREAM, start_index=1)
    with pytest.raises(ValueError, match="cluster_period is 3, but method 'idc' makes no use of it"):
        toy_config(cluster_period=3)
