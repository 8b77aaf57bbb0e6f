"""Trainings as one batch of models against each by itself."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import WARM_UP, Recorder
from mdc_core.compute.streams import stream
from mdc_core.config.settings import EvaluateConfig, NetworkConfig
from mdc_core.networks import Network, build_network
from mdc_core.training.batched import Training, fit, train_batched
from mdc_core.training.steps import Steps, Trainer, draw_epoch
from tests.core.replay import Eager, Replaying
from tests.core.toys import TOY_NETWORK, TOY_NORMALISATION

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
COUNTS = (4, 9, 6, 11, 4)
"""Images of five trainings: 1 to 3 steps of at most 4 per epoch."""
RECIPE = EvaluateConfig(epochs=24, batch_size=4, network=TOY_NETWORK, cutmix=0.5)
STOPS = (6, 12, 18, 24)


def training(
    number: int, network: NetworkConfig, dtype: torch.dtype
) -> tuple[Network, Tensor, Tensor, torch.Generator]:
    """What `fit` takes, all of it of this training alone."""
    side = 16 if network.name == "resnet_ap" else 8
    net = build_network(
        network, channels=3, image_size=side, classes=2, generator=stream(0, "weights", number)
    )
    shape = COUNTS[number], 3, side, side
    images = torch.randn(shape, generator=stream(0, "images", number), dtype=dtype)
    return net.to(dtype), images, torch.arange(len(images)) % 2, stream(0, "draws", number)


def trainings(recipe: EvaluateConfig, stops: tuple[int, ...], dtype: torch.dtype) -> list[Training]:
    made = []
    for number in range(len(COUNTS)):
        net, images, labels, generator = training(number, recipe.network, dtype)
        made.append(Training(net, images, labels, TOY_NORMALISATION, recipe, generator, stops))
    return made


def weights(net: Network) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def literal_fit(recipe: EvaluateConfig, number: int, dtype: torch.dtype) -> dict[int, Tensor]:
    """Weights after every epoch of a training that runs by itself."""
    net, images, labels, generator = training(number, recipe.network, dtype)
    trainer = Trainer(net, images, labels, Recorder(CPU), bf16=recipe.precision == "bf16")
    results = {}
    for epoch in range(1, recipe.epochs + 1):
        for steps in draw_epoch(len(images), epoch, recipe, TOY_NORMALISATION, images.shape[-1], generator):
            trainer.run(steps)
        results[epoch] = weights(net)
    return results


@cache
def alone(number: int) -> dict[int, Tensor]:
    return literal_fit(RECIPE, number, torch.float64)


@pytest.mark.parametrize("models", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", [Recorder, Eager, Replaying])
def test_together_they_learn_what_each_learns_alone(models: int, kind: type[Recorder]) -> None:
    """At every stop, for different images, weights, draws and numbers of steps, and past the milestones."""
    batched = trainings(RECIPE, STOPS, torch.float64)
    seen = []
    for training in train_batched(batched, models, kind(CPU), most_images=max(COUNTS)):
        number = batched.index(training)
        seen.append((number, training.epoch))
        torch.testing.assert_close(weights(training.net), alone(number)[training.epoch], rtol=1e-6, atol=1e-9)
        assert training.finished == (training.epoch == RECIPE.epochs)
    assert sorted(seen) == [(number, epoch) for number in range(len(COUNTS)) for epoch in STOPS]


@pytest.mark.parametrize("models", [2, 5])
def test_a_recording_stays_while_trainings_follow_each_other_or_end(models: int) -> None:
    """Two at once: a pair, and the last one. Five: three of them until the last two are less than half."""
    recorder = Replaying(CPU)
    list(train_batched(trainings(RECIPE, STOPS, torch.float32), models, recorder, most_images=max(COUNTS)))
    assert recorder.refusal is None
    assert (recorder.warmed, recorder.recordings) == (2 * WARM_UP, 2)


@pytest.mark.parametrize("kind", [Eager, Replaying])
def test_fewer_train_at_once_where_memory_runs_out(
    kind: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, sizes = Trainer._train, []

    def trained(trainer: Trainer, now: Steps) -> None:
        sizes.append(len(now.lr))
        if len(now.lr) > 2:
            raise torch.OutOfMemoryError("no room")
        train(trainer, now)

    monkeypatch.setattr(Trainer, "_train", trained)
    batched = trainings(RECIPE, STOPS, torch.float64)
    for training in train_batched(batched, 5, kind(CPU), most_images=max(COUNTS)):
        torch.testing.assert_close(
            weights(training.net), alone(batched.index(training))[training.epoch], rtol=1e-6, atol=1e-9
        )
    assert all(training.finished for training in batched)
    assert sizes[:2] == [5, 3]
    assert set(sizes[2:]) <= {1, 2}


def test_a_training_takes_its_steps_in_pieces_of_any_size() -> None:
    recipe = RECIPE.model_copy(update={"batch_size": 1, "epochs": 10})
    pieces, whole = trainings(recipe, (10,), torch.float32)[3], trainings(recipe, (10,), torch.float32)[3]
    taken = [pieces.next_steps(count) for count in (1, 60, 11, 2, 36)]
    assert pieces.finished
    expected = whole.next_steps(110)
    assert torch.equal(torch.cat([steps.positions for steps in taken]), expected.positions)
    colours = [steps.params.color for steps in taken]
    assert expected.params.color is not None
    assert torch.equal(torch.cat([c for c in colours if c is not None]), expected.params.color)


def test_fit_yields_every_epoch_of_a_training() -> None:
    net, images, labels, generator = training(1, TOY_NETWORK, torch.float64)
    actual = {epoch: weights(net) for epoch in fit(net, images, labels, TOY_NORMALISATION, RECIPE, generator)}
    assert list(actual) == list(alone(1))
    for epoch, expected in alone(1).items():
        torch.testing.assert_close(actual[epoch], expected)


@pytest.mark.parametrize("network", [TOY_NETWORK, NetworkConfig(name="resnet_ap", width=4)])
def test_bfloat16_is_as_near_as_by_itself(network: NetworkConfig) -> None:
    """To float32, after an epoch; the weights themselves stay float32."""
    recipe = RECIPE.model_copy(update={"network": network, "epochs": 1})
    rounded = recipe.model_copy(update={"precision": "bf16"})
    batched = trainings(rounded, (1,), torch.float32)
    for training in train_batched(batched, 5, Recorder(CPU), most_images=max(COUNTS), bf16=True):
        number, actual = batched.index(training), weights(training.net)
        exact, alone = (literal_fit(kind, number, torch.float32)[1] for kind in (recipe, rounded))
        assert actual.dtype == torch.float32
        assert 0 < float((actual - exact).norm()) < 2 * float((alone - exact).norm())
