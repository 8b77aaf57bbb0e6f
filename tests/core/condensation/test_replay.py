"""Whole runs as a GPU carries them out, emulated on the CPU (tests/core/replay.py), against eager runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import WARM_UP, Recorder, to_device
from mdc_core.condensation import gradient_matching
from mdc_core.condensation.condense import Step, condense, result, start_state
from mdc_core.condensation.iteration import TileUpdate
from mdc_core.condensation.mls import MlsState, Track
from mdc_core.condensation.network_phase import initial_network
from mdc_core.config.presets import condense_config, evaluate_config
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from mdc_core.data.real_set import DataSet, RealSet
from mdc_core.training.calibrate import calibrate
from mdc_core.training.evaluate import Trial, evaluate
from tests.core.replay import Eager, Replaying, emulated, pinned, pinned_memory
from tests.core.toys import DREAM, FEATURE, toy_config, toy_real

pytestmark = pytest.mark.slow

__all__ = ["pinned_memory"]
CPU = torch.device("cpu")
RUNS: dict[str, dict[str, object]] = {
    "mls": {},
    "none": {"subset_loss": "none"},
    "all": {"subset_loss": "all"},
    "all, weighted": {"subset_loss": "all", "subset_weights": (0.5, 0.0)},
    "cumulative": {"freeze": "cumulative"},
    "not frozen": {"freeze": "none"},
    "class-wise": {"class_wise": True},
    "gradient metric": {"subset_metric": "gradient"},
    "accuracy metric": {"subset_metric": "accuracy", "accuracy_epochs": 2},
    "l1": {"metric": "l1"},
    "cos": {"metric": "cos"},
    "some tiles": {"subset_loss": "none", "batch_syn_max": 5},
    "noise": {"init": "noise"},
    "early": {"early": 1},
    "pool": {"pool": 2, "pool_samples": 24},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "resnet": {"network": {"name": "resnet_ap", "width": 4}, "augment": ("flip", "color", "scale", "rotate")},
    "dream": DREAM,
    "features": FEATURE,
    "features, mls": FEATURE | {"subset_loss": "mls"},
    "features, class-wise": FEATURE | {"subset_loss": "mls", "class_wise": True},
    "features, none": FEATURE | {"subset_loss": "none", "calibration": 0.0},
    "features, accuracy metric": FEATURE
    | {"subset_loss": "mls", "subset_metric": "accuracy", "accuracy_epochs": 2},
    "features, bf16": FEATURE | {"precision": "bf16"},
    "features, resnet": FEATURE | {"network": {"name": "resnet_ap", "width": 4}},
}
PRESETS: dict[str, tuple[int, dict[str, object]]] = {
    # Image side, and what makes the schedule small.
    "digits": (8, {"network": {"width": 8}}),
    "cifar10": (32, {"network": {"width": 8}}),
    "imagenet-10": (
        64,
        {"network": {"width": 4}, "factor": 2, "batch_real": 2, "batch_network": 4, "early": 1},
    ),
}


def steps(config: CondenseConfig, real: RealSet) -> list[Step]:
    return list(condense(config, real))


def assert_same(actual: list[Step], expected: list[Step]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.state.tiles, other.state.tiles)
        assert torch.equal(one.state.momentum, other.state.momentum)
        assert one.state.optimiser_state.keys() == other.state.optimiser_state.keys()
        assert all(
            torch.equal(one.state.optimiser_state[name], other.state.optimiser_state[name])
            for name in one.state.optimiser_state
        )
        assert (one.loss, one.distances, one.selected()) == (other.loss, other.distances, other.selected())


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_replayed_condensation_is_the_eager_one(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: with the same shapes, and with the CPU's own where no batch is padded."""
    config = toy_config(**changes, inner_iterations=3, outer_loops=7, ipc=3)
    real = toy_real(side=16)
    plain = steps(config, real)
    emulated(monkeypatch, Eager)
    expected = steps(config, real)
    recorders = emulated(monkeypatch, Replaying)
    assert_same(steps(config, real), expected)
    (recorder,) = recorders  # also of networks that are trained for a metric: they warm up once
    assert recorder.replays > 3 * WARM_UP
    assert recorder.refusal is None
    if changes.get("subset_metric") != "accuracy":  # whose subsets do not fill their last batches
        assert_same(expected, plain)


def small_preset(preset: str) -> tuple[CondenseConfig, EvaluateConfig, DataSet]:
    """A preset's settings and images of its shape, little of each."""
    side, changes = PRESETS[preset]
    schedule = {
        "ipc": 2,
        "outer_loops": 5,
        "inner_iterations": 2,
        "mls_period": 2,
        "n_data": 16,
        "batch_real": 8,
        "batch_network": 8,
    }
    config = condense_config(preset, {**schedule, **changes})
    judged = {"network": changes["network"], "epochs": 4, "repeats": 1}
    recipe = evaluate_config(preset, judged, ipc=config.ipc, factor=config.factor)
    real = toy_real(channels=1 if preset == "digits" else 3, per_class=8, side=side)
    return config, recipe, DataSet(preset, real, real)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_run_as_on_a_gpu(
    preset: str, pinned_memory: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Condensation and evaluation, through pinned memory and recordings, are the eager ones."""
    config, recipe, data = small_preset(preset)

    def whole() -> tuple[list[Step], list[Trial]]:
        actual = steps(config, data.train)
        return actual, list(evaluate(result(actual[-1].state, data.train).delivered(), data, recipe))

    emulated(monkeypatch, Eager)
    with monkeypatch.context() as unpinned:
        unpinned.setattr("mdc_core.compute.cuda_graph._crosses", lambda tensor, device: False)
        expected, judged = whole()
    assert not pinned_memory
    recorders = emulated(monkeypatch, Replaying)
    actual, trials = whole()
    assert_same(actual, expected)
    assert trials == judged
    assert len(pinned_memory) > 100
    assert all(one.refusal is None and one.replays for one in recorders)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_calibration_runs_as_on_a_gpu(
    preset: str, pinned_memory: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders = emulated(monkeypatch, Replaying)
    config, _, data = small_preset(preset)
    speed = calibrate(config, data.facts(), "cpu")
    assert min(speed.flops, speed.bandwidth, speed.start) > 0
    assert pinned_memory
    assert recorders
    assert all(one.refusal is None and one.replays for one in recorders)


def test_pinning_refuses_elements_that_share_memory() -> None:
    """As torch does, which is why copies are made contiguous first."""
    shared = torch.ones(3, 1).expand(3, 4)
    with pytest.raises(RuntimeError, match="single memory location"):
        pinned(shared)


def test_a_copy_through_pinned_memory_has_the_same_numbers(pinned_memory: list[Tensor]) -> None:
    for tensor in (torch.arange(3.0)[:, None].expand(3, 4), torch.rand(4, 3).T, torch.rand(5, 4)[::2]):
        assert torch.equal(to_device(tensor, CPU), tensor)
    assert len(pinned_memory) == 3


def adds_what_it_draws(total: Tensor) -> None:
    total.add_(torch.rand(()))


def branches_on_a_value(total: Tensor) -> None:
    total.add_(1 if total < 4.5 else 2)


class Rebinds:
    """Puts its result into a new tensor."""

    def __init__(self) -> None:
        self.latest = torch.zeros(())

    def __call__(self, total: Tensor) -> None:
        self.latest = self.latest + 1
        total.copy_(self.latest)


class Counts:
    """Takes a number of Python's along."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, total: Tensor) -> None:
        self.calls += 1
        total.add_(self.calls)


@pytest.mark.parametrize("make", [lambda: adds_what_it_draws, lambda: branches_on_a_value, Rebinds, Counts])
def test_the_emulation_sees_what_python_bakes_into_a_recording(
    make: Callable[[], Callable[[Tensor], None]],
) -> None:
    totals = []
    refusals = []
    for kind in (Eager, Replaying):
        torch.manual_seed(0)
        recorder, total, run = kind(CPU), torch.zeros(()), make()
        recorded = recorder.recorded(lambda total=total, run=run: run(total), ["sum"])
        for _ in range(WARM_UP + 4):
            recorded()
        totals.append(float(total))
        refusals.append(recorder.refusal)
    assert totals[0] != totals[1] or refusals[1] is not None


def test_recording_has_no_effect_and_every_replay_has_one() -> None:
    recorder, total = Replaying(CPU), torch.zeros(2, 3)

    def add() -> None:
        total[1].add_(total.new_ones(3) * 2)

    recorded = recorder.recorded(add, ["sum"])
    for call in range(1, WARM_UP + 5):
        recorded()
        assert total.tolist() == [[0.0] * 3, [2.0 * call] * 3]
    assert (recorder.warmed, recorder.replays) == (WARM_UP, 4)


def test_shapes_that_were_warmed_up_are_recorded_at_once() -> None:
    recorder, total = Replaying(CPU), torch.zeros(())

    def add() -> None:
        total.add_(1)

    def calls(*shapes: str) -> int:
        """Warm-up calls of five calls of a new function."""
        before, recorded = recorder.warmed, recorder.recorded(add, shapes)
        for _ in range(5):
            recorded()
        return recorder.warmed - before

    assert [calls("a"), calls("b", "c"), calls("c", "a"), calls("a", "d")] == [WARM_UP, WARM_UP, 0, WARM_UP]
    assert float(total) == 20


def test_a_run_warms_up_each_shape_once() -> None:
    """Class-wise, many loops pair the classes with subset sizes anew; new shapes alone are warmed up."""
    config, real = toy_config(class_wise=True, freeze="none"), toy_real()
    recorder, start = Replaying(CPU), start_state(config, real)
    update = TileUpdate(config, real, initial_network(config, real, 1), recorder)
    warmed = []
    for selected in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 1)):
        state = MlsState(tuple(Track((n,)) for n in selected))
        update.begin(start.tiles, start.momentum, state, measured=False)
        for inner in range(5):
            update.run(1, inner)
        warmed.append(recorder.warmed // WARM_UP)
    assert warmed == [1, 2, 2, 3, 3]


@pytest.mark.parametrize("kind", [Eager, Replaying, Recorder])
def test_fewer_classes_are_matched_where_memory_runs_out(
    kind: type[Recorder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, real = toy_config(outer_loops=1), toy_real()
    emulated(monkeypatch, kind)
    expected = steps(config, real)
    fits, match = 1, gradient_matching.match

    def matched(net: object, images: Tensor, *rest: object) -> object:
        if len(images) > fits:
            raise torch.OutOfMemoryError("no room")
        return match(net, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gradient_matching, "match", matched)
    (actual,) = steps(config, real)
    torch.testing.assert_close(actual.state.tiles, expected[0].state.tiles, atol=1e-5, rtol=0)
    assert actual.loss == pytest.approx(expected[0].loss, rel=1e-5)
    assert caplog.messages == [
        "the GPU ran out of memory: from now on 1 classes are matched per batch, which is slower"
    ]
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        steps(config, real)
