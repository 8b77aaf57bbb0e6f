"""Training and judging: the batches, the schedule, the counts, and that training learns."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from mdc_core.compute.batching import items_per_batch
from mdc_core.compute.streams import stream
from mdc_core.config.estimate import CPU_BATCH_BYTES, training_bytes
from mdc_core.config.settings import EvaluateConfig
from mdc_core.data import synthetic
from mdc_core.data.real_set import DataSet, RealSet
from mdc_core.data.synthetic import SyntheticSet, initial_tiles
from mdc_core.errors import ConfigError
from mdc_core.networks import Network, build_network
from mdc_core.training import evaluate as evaluation
from mdc_core.training.accuracy import accuracy, class_accuracy
from mdc_core.training.batched import fit
from mdc_core.training.evaluate import (
    Trial,
    accuracy_rows,
    evaluate,
    random_images,
    shrunk_images,
    summarise,
)
from mdc_core.training.sgd import Sgd
from mdc_core.training.steps import shuffled
from tests.core.toys import TOY_NETWORK, TOY_NORMALISATION, toy_config, toy_real

pytestmark = pytest.mark.slow

RECIPE = EvaluateConfig(
    epochs=30, repeats=2, network=TOY_NETWORK, sizes=(1, 3), batch_size=4, augment=("color", "crop", "rotate")
)


def data() -> DataSet:
    return DataSet("toy", toy_real(seed=0), toy_real(seed=0))


def tiled() -> SyntheticSet:
    """Two images of four tiles in each class."""
    return SyntheticSet(initial_tiles(toy_config(ipc=2), toy_real()), 8)


def prototypes() -> SyntheticSet:
    """Three real images of each class, as they are (factor 1)."""
    real = toy_real()
    picked = [real.floats(positions[:3]) for positions in real.class_index()]
    return SyntheticSet(torch.stack(picked, dim=1).unsqueeze(2), 8)


def test_shuffled_epochs_use_every_image_once() -> None:
    batches = list(itertools.islice(shuffled(10, 4, stream(0, "x")), 6))
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2]
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


def test_an_evaluation_learns_and_counts_its_trials() -> None:
    trials = list(evaluate(prototypes(), data(), RECIPE))
    assert len(trials) == RECIPE.trainings(3, 1) == 2 * 2 * 2
    assert {(t.k, t.source, t.repeat) for t in trials} == set(
        itertools.product((1, 3), ("condensed", "random"), (0, 1))
    )
    assert all(t.best >= t.accuracy for t in trials)
    largest = [t.accuracy for t in trials if t.k == 3]
    assert min(largest) > 0.9


def test_shrunk_real_images_are_a_baseline_of_its_own() -> None:
    recipe = RECIPE.model_copy(update={"sizes": (1, 2)})
    trials = list(evaluate(tiled(), data(), recipe))
    assert len(trials) == recipe.trainings(2, 2) == 2 * 3 * 2
    rows = summarise(trials)
    assert [(row.k, row.source) for row in rows] == list(
        itertools.product((1, 2), ("condensed", "random", "shrunk"))
    )
    assert rows[-1].mean > 0.8  # chance is 0.5
    assert list(evaluate(tiled(), data(), recipe, done=trials[:5])) == trials[5:]
    table = accuracy_rows(rows, recipe)
    assert [(row["k"], row["repeats"]) for row in table] == [(1, 2), (2, 2)]
    assert [(row["shrunk_mean"], row["shrunk_std"]) for row in table] == [(r.mean, r.std) for r in rows[2::3]]
    assert [(row["random_mean"], row["random_std"]) for row in table] == [(r.mean, r.std) for r in rows[1::3]]


def test_shorter_trainings_are_measured_on_the_condensed_set_alone() -> None:
    recipe = RECIPE.model_copy(update={"epoch_shares": (0.5, 0.01)})
    assert (recipe.epochs_of("condensed"), recipe.epochs_of("random")) == ((30, 15, 1), (30,))
    trials = list(evaluate(prototypes(), data(), recipe))
    assert len(trials) == recipe.trainings(3, 1) == 2 * 2 * (3 + 1)
    lengths = {(t.source, t.epochs) for t in trials}
    assert lengths == {("condensed", 30), ("condensed", 15), ("condensed", 1), ("random", 30)}
    table = accuracy_rows(summarise(trials), recipe)
    assert [(row["epochs"], row["k"]) for row in table] == [(e, k) for e in (30, 15, 1) for k in (1, 3)]
    assert [row["random_mean"] is None for row in table] == [False] * 2 + [True] * 4
    # The long ones are those of an evaluation without short ones, and what is done is not repeated.
    plain = list(evaluate(prototypes(), data(), RECIPE))
    assert [t for t in trials if t.epochs == 30] == plain
    earlier = [dataclasses.replace(t, epochs=0) for t in plain]  # as an earlier release kept them
    missing = list(evaluate(prototypes(), data(), recipe, done=earlier))
    assert missing == [t for t in trials if t.epochs != 30]


def test_a_baseline_that_is_not_measured_or_not_as_often_is_null() -> None:
    twice = [Trial(1, "condensed", repeat, 0.5, 0.5) for repeat in (0, 1)]
    (row,) = accuracy_rows(summarise([*twice, Trial(1, "random", 0, 0.4, 0.4)]), RECIPE)
    assert [row[f"{name}_{figure}"] for name in ("random", "shrunk") for figure in ("mean", "std")] == [
        None
    ] * 4


@pytest.mark.parametrize("factor", [2, 3])
def test_shrunk_images_are_the_first_tiles_of_a_new_set(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that starts from the same permutation, delivered in 8 bits, has exactly these images."""
    real = toy_real()
    monkeypatch.setattr(synthetic, "stream", lambda seed, _, label: stream(seed, "random", 0, label))
    start = SyntheticSet(initial_tiles(toy_config(ipc=1, factor=factor, seed=7), real), 8).delivered()
    images, labels = shrunk_images(real, factor**2, start.tiles.shape[-1], seed=7, repeat=0)
    torch.testing.assert_close(images, start.images())
    assert torch.equal(labels, start.labels())


def test_a_class_with_too_few_images_gives_all_it_has() -> None:
    images, labels = shrunk_images(toy_real(per_class=5), 8, 4, seed=0, repeat=0)
    assert len(images) == 10
    assert labels.tolist() == [0] * 5 + [1] * 5


def test_an_evaluation_repeats_itself() -> None:
    recipe = RECIPE.model_copy(update={"repeats": 1, "epochs": 3})
    assert list(evaluate(prototypes(), data(), recipe)) == list(evaluate(prototypes(), data(), recipe))


def test_a_cut_off_evaluation_goes_on() -> None:
    recipe = RECIPE.model_copy(update={"repeats": 1, "epochs": 3})
    whole = list(evaluate(prototypes(), data(), recipe))
    assert list(evaluate(prototypes(), data(), recipe, done=whole[:3])) == whole[3:]


def test_trainings_learn_the_same_in_any_company() -> None:
    """By the tests' outcome; tests/core/training/test_batched.py compares weights."""
    recipe = RECIPE.model_copy(update={"epochs": 8})
    by_one, batched = (
        {
            (t.k, t.source, t.repeat): t.accuracy
            for t in evaluate(prototypes(), data(), recipe, models_per_batch=number)
        }
        for number in (1, 100)
    )
    assert batched == pytest.approx(by_one, abs=0.05)


def test_small_steps_are_taken_together_and_large_ones_alone() -> None:
    cpu, small, large = torch.device("cpu"), RECIPE, EvaluateConfig()
    assert items_per_batch(training_bytes(large, data().facts(), 1000), cpu) == 1
    one = training_bytes(small, data().facts(), 6)
    models = items_per_batch(one, cpu)
    assert models > 8
    assert models * one <= CPU_BATCH_BYTES
    assert items_per_batch(training_bytes(small, data().facts(), 60), cpu) <= models


def test_precision_holds_for_the_evaluation_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is torch's, of the whole process: callers have their own again whenever it is their turn."""
    backend = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, within = backend.fp32_precision, []

    def looking(net: Network, real: RealSet) -> float:
        within.append(backend.fp32_precision)
        return accuracy(net, real)

    monkeypatch.setattr(evaluation, "accuracy", looking)
    for precision in ("float32", "tf32", "bf16"):
        recipe = RECIPE.model_copy(update={"epochs": 1, "sizes": (1,), "precision": precision})
        outside = [backend.fp32_precision for _ in evaluate(prototypes(), data(), recipe)]
        assert outside == [before] * 4
    assert within == ["ieee"] * 4 + ["tf32"] * 8


def test_random_images_grow_by_prefix_and_differ_by_repeat() -> None:
    real = toy_real()
    small, labels = random_images(real, 2, seed=0, repeat=0)
    large, _ = random_images(real, 5, seed=0, repeat=0)
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(small[:2], large[:2])
    assert not torch.equal(small, random_images(real, 2, seed=0, repeat=1)[0])


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"k is 9"):
        next(evaluate(prototypes(), data(), EvaluateConfig(sizes=(9,))))


def test_learning_rate_drops_at_the_milestones(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.01 · 0.2 after 2/3 and · 0.04 after 5/6 of the epochs."""
    rates = []
    step = Sgd.step

    def recording(self: Sgd, loss: torch.Tensor, lr: torch.Tensor) -> None:
        rates.append(float(lr))
        step(self, loss, lr)

    monkeypatch.setattr(Sgd, "step", recording)
    net = build_network(TOY_NETWORK, channels=3, image_size=8, classes=2, generator=stream(0, "w"))
    recipe = EvaluateConfig(epochs=6, network=TOY_NETWORK, augment=(), cutmix=0.0)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 1, 1])
    epochs = fit(net, images, labels, TOY_NORMALISATION, recipe, stream(0, "f"))
    assert list(epochs) == [1, 2, 3, 4, 5, 6]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.002, 0.0004])


def test_descent_equals_torchs() -> None:
    ours, theirs = (
        build_network(TOY_NETWORK, channels=3, image_size=8, classes=2, generator=stream(0, "w"))
        for _ in range(2)
    )
    one, other = Sgd(ours), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(3):
        images = torch.rand(4, 3, 8, 8, generator=stream(step, "images"))
        one.step(ours(images).square().mean(), torch.tensor([0.1]))
        other.zero_grad()
        theirs(images).square().mean().backward()
        other.step()
    for ours_, theirs_ in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_, theirs_)


def test_accuracy_counts_by_class() -> None:
    real = toy_real()
    net = build_network(TOY_NETWORK, channels=3, image_size=8, classes=2, generator=stream(0, "w"))
    predicted = net(real.normalise(real.floats(torch.arange(32)))).argmax(1)
    expected = (predicted == real.labels).float()
    assert accuracy(net, real) == pytest.approx(float(expected.mean()))
    by_class = class_accuracy(net, real, batch=5)
    assert by_class.tolist() == pytest.approx([float(expected[:16].mean()), float(expected[16:].mean())])


def test_summary_by_hand() -> None:
    trials = [
        Trial(2, "random", 0, 0.5, 0.6),
        Trial(1, "condensed", 0, 0.2, 0.2),
        Trial(1, "condensed", 1, 0.4, 0.5),
    ]
    first, second = summarise(trials)
    assert (first.k, first.source, first.repeats) == (1, "condensed", 2)
    assert (first.mean, first.std, first.best) == pytest.approx((0.3, 0.02**0.5, 0.35))
    assert (second.k, second.source, second.std, second.repeats) == (2, "random", 0.0, 1)
