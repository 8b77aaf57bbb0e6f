"""What is predicted, against what is counted: operations by torch's counter, costs by measuring a network."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mdc_core.compute.streams import stream
from mdc_core.condensation import iteration
from mdc_core.condensation.condense import condense, prepare
from mdc_core.condensation.pool import MemoryPools
from mdc_core.config.estimate import (
    BASE_BYTES,
    GPU_BASE_BYTES,
    KMEANS_ITERATIONS,
    Speed,
    classes_per_batch,
    data_bytes,
    estimate,
    evaluation_work,
    matching_bytes,
    network_cost,
    outer_loop_work,
    pool_work,
    what_to_lower,
)
from mdc_core.config.presets import NAMED, condense_config, evaluate_config
from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig, NetworkConfig
from mdc_core.data.real_set import DataSet, RealSet
from mdc_core.data.synthetic import SyntheticSet, initial_tiles
from mdc_core.networks import build_network
from mdc_core.networks.cost import measure_cost
from mdc_core.training import calibrate as calibration
from mdc_core.training.calibrate import calibrate
from mdc_core.training.evaluate import evaluate
from tests.core.toys import DREAM, FEATURE, toy_config, toy_real

pytestmark = pytest.mark.slow

NETWORKS = [NetworkConfig(depth=2, width=16), NetworkConfig(name="resnet_ap", width=8)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 64), (1, 28), (3, 96), (3, 160)])
def test_costs_equal_the_counted_ones(network: NetworkConfig, channels: int, side: int) -> None:
    facts = DataFacts(name="x", channels=channels, image_size=side, classes=("a", "b", "c"), smallest_class=9)
    net = build_network(network, channels=channels, image_size=side, classes=3, generator=stream(0, "w"))
    counted, predicted = measure_cost(net, channels, side), network_cost(network, facts)
    assert predicted.parameters == counted.parameters
    assert predicted.flops_per_image == pytest.approx(counted.flops_per_image, rel=0.01)
    assert predicted.activation_bytes == pytest.approx(counted.activation_bytes, rel=0.15)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("changes", [{}, {"subset_loss": "none"}, {"early": 1, "n_data": 0}])
def test_an_outer_loop_has_the_predicted_operations(
    network: NetworkConfig, changes: dict[str, object], plain_pooling: None
) -> None:
    real = toy_real(side=16)
    config = toy_config(network=network, outer_loops=1, **changes)
    with FlopCounterMode(display=False) as counter:
        next(condense(config, real))
    assert estimate(config, real.facts("toy")).flops == pytest.approx(counter.get_total_flops(), rel=0.001)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("changes", [{}, {"calibration": 0.0}, {"subset_loss": "mls"}])
def test_feature_matching_has_the_predicted_operations(
    network: NetworkConfig, changes: dict[str, object], plain_pooling: None
) -> None:
    """With the pool, whose networks are trained in it; whole batches."""
    real = toy_real(side=16)
    config = toy_config(**FEATURE | {"network": network, "outer_loops": 1, "inner_iterations": 6, **changes})
    pools = MemoryPools()
    with FlopCounterMode(display=False) as ahead:
        list(prepare(config, real, pools=pools))
    with FlopCounterMode(display=False) as counter:
        next(condense(config, real, pools=pools))
    facts = real.facts("toy")
    assert pool_work(config, facts).flops == pytest.approx(ahead.get_total_flops(), rel=1e-5)
    assert outer_loop_work(config, facts).flops == pytest.approx(counter.get_total_flops(), rel=1e-5)
    total = ahead.get_total_flops() + counter.get_total_flops()
    assert estimate(config, facts).flops == pytest.approx(total, rel=1e-5)


def test_clustering_is_counted(real: RealSet, plain_pooling: None) -> None:
    """DREAM's forward passes exactly; of k-means at most what is expected, since it may end early."""
    config = toy_config(**DREAM | {"init": "real", "outer_loops": 1, "inner_iterations": 3})
    with FlopCounterMode(display=False) as counter:
        next(condense(config, real))
    expected = estimate(config, real.facts("toy")).flops
    features = config.network.width * 2 * 2
    kmeans = 2 * len(real.labels) * 2 * config.batch_real * features * (KMEANS_ITERATIONS + 1)
    assert expected - kmeans < counter.get_total_flops() <= expected


def test_measuring_accuracies_is_counted(real: RealSet, plain_pooling: None) -> None:
    config = toy_config(subset_metric="accuracy", accuracy_epochs=3, outer_loops=2)
    with FlopCounterMode(display=False) as counter:
        list(condense(config, real))
    assert estimate(config, real.facts("toy")).flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_an_evaluation_has_the_predicted_operations(real: RealSet, plain_pooling: None) -> None:
    config = toy_config()
    recipe = EvaluateConfig(epochs=8, repeats=2, sizes=(1, 3), network=config.network, augment=())
    test = real.subset(torch.tensor([0, 1, 2, 16, 17, 18]))  # about the sixth that is assumed
    synthetic = SyntheticSet(initial_tiles(config, real), real.image_size)
    with FlopCounterMode(display=False) as counter:
        list(evaluate(synthetic, DataSet("toy", real, test), recipe))
    predicted = evaluation_work(recipe, config, real.facts("toy")).flops
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_published_iteration_is_a_tera_flop() -> None:
    """The cost model of docs/results/performance.md for CIFAR-10, ipc 10, width 128."""
    config = CondenseConfig(outer_loops=1)
    whole = estimate(config, NAMED["cifar10"]).flops
    without = estimate(config.model_copy(update={"n_data": 0}), NAMED["cifar10"]).flops
    assert whole / config.inner_iterations == pytest.approx(1.1e12, rel=0.05)
    assert (whole - without) / (config.inner_iterations - 1) == pytest.approx(595e9, rel=0.01)


def test_seconds_follow_the_speed_and_none_is_none(real: RealSet) -> None:
    config, recipe = toy_config(), EvaluateConfig(epochs=8, network=toy_config().network)
    slow = estimate(config, real.facts("toy"), recipe, speed=Speed(1e9, 1e8, 2e-3))
    fast = estimate(config, real.facts("toy"), recipe, speed=Speed(2e9, 2e8, 1e-3))
    assert slow.seconds_total is not None
    assert fast.seconds_total == pytest.approx(slow.seconds_total / 2)
    assert slow.seconds_per_outer_loop is not None
    assert slow.seconds_evaluation is not None
    assert slow.seconds_total == pytest.approx(6 * slow.seconds_per_outer_loop + slow.seconds_evaluation)
    unknown = estimate(config, real.facts("toy"), recipe)
    assert unknown.seconds_total is unknown.seconds_per_outer_loop is unknown.seconds_evaluation is None
    assert unknown.memory_bytes == slow.memory_bytes


def test_memory_grows_with_what_decides_it() -> None:
    facts = NAMED["cifar10"]
    least = estimate(CondenseConfig(), facts).memory_bytes
    assert least > BASE_BYTES + facts.images * 3072  # type: ignore[operator]
    for larger in ({"ipc": 50}, {"network": {"width": 256}}, {"batch_network": 4096}, {"batch_real": 2048}):
        assert estimate(CondenseConfig.model_validate(larger), facts).memory_bytes > least
    assert estimate(CondenseConfig(), facts, EvaluateConfig(batch_size=4096)).memory_bytes > least
    on_disk = estimate(CondenseConfig(), facts, memory_limit=200_000_000).memory_bytes
    assert on_disk < least - 150_000_000


def test_a_gpu_is_planned_as_it_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both copies of what is matched at once fit into half of what is free; the estimate counts the same classes."""
    config, facts = CondenseConfig(), NAMED["cifar100"]
    assert estimate(config, facts, gpu=True).memory_bytes < 4e9  # one class at a time
    for limit in (12 * 10**9, 40 * 10**9, 80 * 10**9):
        free = limit - GPU_BASE_BYTES - data_bytes(facts)
        per_batch = classes_per_batch(config, facts, free)
        assert 1 < per_batch <= 100
        held = 2 * matching_bytes(config, facts)  # by the calls that warm up, and by the pool of the graphs
        assert per_batch * held <= free / 2
        assert per_batch == 100 or (per_batch + 1.1) * held > free / 2
        found = estimate(config, facts, memory_limit=limit, gpu=True).memory_bytes
        assert GPU_BASE_BYTES + per_batch * held < found < limit
    monkeypatch.setattr("mdc_core.condensation.iteration.gpu_free", lambda device: 10**9)
    real = toy_real()
    assert iteration.classes_per_batch(toy_config(), real) == 2
    monkeypatch.setattr(
        "mdc_core.condensation.iteration.gpu_free",
        lambda device: 4 * matching_bytes(toy_config(), real.facts("x")),
    )
    assert iteration.classes_per_batch(toy_config(), real) == 1


def test_what_to_lower_names_the_largest() -> None:
    facts = NAMED["cifar10"]
    assert what_to_lower(CondenseConfig(ipc=50), facts, None, 2**30) == "condense.ipc, condense.network.width"
    large = EvaluateConfig(batch_size=10**6)
    assert what_to_lower(CondenseConfig(), facts, large, 2**30).startswith("evaluate.batch_size")


def test_a_calibration_gives_a_speed(real: RealSet) -> None:
    speed = calibrate(toy_config(), real.facts("toy"), "cpu")
    assert all(value > 0 for value in dataclasses.astuple(speed))


def test_a_calibration_tells_what_starting_takes_from_what_an_image_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts, config = NAMED["cifar10"], CondenseConfig()
    cost = network_cost(config.network, facts)
    machine = Speed(2e11, 3e9, 0.004)
    image = cost.flops_per_image / machine.flops + cost.activation_bytes / machine.bandwidth
    monkeypatch.setattr(calibration, "_convolution", lambda *_: machine.flops)
    monkeypatch.setattr(calibration, "_training", lambda _config, _facts, _device, images, _steps: images)
    monkeypatch.setattr(calibration, "_best", lambda images, _: machine.start + image * images)
    assert dataclasses.astuple(calibrate(config, facts, "cpu")) == pytest.approx(dataclasses.astuple(machine))


@pytest.mark.parametrize(("takes", "calls"), [(0.001, 6), (0.25, 3), (60, 2)])
def test_on_a_cpu_tries_end_when_their_time_is_gone(
    monkeypatch: pytest.MonkeyPatch, takes: float, calls: int
) -> None:
    now, called = [0.0], []
    monkeypatch.setattr("mdc_core.training.calibrate.time.perf_counter", lambda: now[0])

    def run() -> None:
        called.append(now[0])
        now[0] += takes

    assert calibration._best(run, torch.device("cpu")) == pytest.approx(takes)
    assert len(called) == calls


CALIBRATED = """
import torch
torch.set_num_threads(1)
from pathlib import Path
from mdc_core.training.calibrate import calibrate
from mdc_core.config.settings import DataFacts
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.config.presets import condense_config
def most(what): return 1024 * int(Path("/proc/self/status").read_text().split(what + ":")[1].split()[0])
keep_freed_memory()
facts = DataFacts(name="x", channels=3, image_size=224, classes=tuple("0123456789"), smallest_class=99)
before = most("VmRSS")
calibrate(condense_config("imagenet-10", {}), facts, "cpu")
print(most("VmHWM") - before)
"""


def test_a_calibration_for_large_images_takes_little_memory() -> None:
    ran = subprocess.run([sys.executable, "-c", CALIBRATED], check=True, capture_output=True, text=True)
    assert int(ran.stdout) < 500e6


MEASURED = """
from pathlib import Path
import torch
torch.set_num_threads(1)
from mdc_core.condensation.condense import condense
from mdc_core.data.load import load
from mdc_core.config.presets import condense_config
config = condense_config("digits", {"outer_loops": 1, "inner_iterations": 2, "network": {"width": 256}})
next(condense(config, load("digits", Path(".")).train))
print(1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


def test_predicted_memory_is_near_the_measured_peak() -> None:
    config = condense_config("digits", {"network": {"width": 256}})
    ran = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True)
    predicted = estimate(
        config, NAMED["digits"], evaluate_config("digits", {}, ipc=10, factor=1)
    ).memory_bytes
    # A build of torch without CUDA takes a few hundred megabytes less.
    assert int(ran.stdout) / 1.5 < predicted < 3 * int(ran.stdout)


FEATURE_MEASURED = MEASURED.replace(
    '"inner_iterations": 2,', '"inner_iterations": 2, "method": "feature", "pool": 1, "pool_samples": 64,'
)


def test_feature_matching_needs_less_memory_and_about_what_is_predicted() -> None:
    assert FEATURE_MEASURED != MEASURED
    changes = {"network": {"width": 256}, "pool": 1}
    found, other = (
        estimate(condense_config("digits", {"method": method, **changes}), NAMED["digits"]).memory_bytes
        for method in ("feature", "idc")
    )
    ran = subprocess.run([sys.executable, "-c", FEATURE_MEASURED], check=True, capture_output=True, text=True)
    assert int(ran.stdout) / 1.5 < found < 3 * int(ran.stdout)
    assert found < other


def test_features_of_more_classes_are_matched_at_once() -> None:
    """There are no second derivatives to hold, and no groups."""
    facts, room = NAMED["cifar100"], 4e9
    feature, idc = (condense_config("cifar100", {"method": method}) for method in ("feature", "idc"))
    assert classes_per_batch(feature, facts, room) > 2 * classes_per_batch(idc, facts, room)
    found = estimate(feature, facts, memory_limit=12 * 10**9, gpu=True).memory_bytes
    assert GPU_BASE_BYTES < found < 12 * 10**9


def test_a_pool_is_held_in_memory() -> None:
    """Trained weights, and with `feature` first ones."""
    facts = NAMED["cifar10"]
    weights = 4 * network_cost(CondenseConfig().network, facts).parameters
    for method, copies in (("idc", 1), ("feature", 2)):
        one, more = (
            estimate(condense_config("cifar10", {"method": method, "pool": pool}), facts).memory_bytes
            for pool in (1, 1000)
        )
        assert more - one == 999 * copies * weights


def test_the_pool_takes_its_own_seconds() -> None:
    config, facts = toy_config(**FEATURE), toy_real().facts("toy")
    found = estimate(config, facts, speed=Speed(1e9, 1e8, 2e-3))
    twice = estimate(config.model_copy(update={"pool": 4}), facts, speed=Speed(1e9, 1e8, 2e-3))
    assert found.seconds_pool is not None
    assert found.seconds_per_outer_loop is not None
    assert twice.seconds_pool == pytest.approx(2 * found.seconds_pool)
    assert twice.seconds_per_outer_loop == found.seconds_per_outer_loop
    assert found.seconds_total == pytest.approx(found.seconds_pool + 6 * found.seconds_per_outer_loop)


def test_a_pool_is_counted_once() -> None:
    facts = toy_real().facts("toy")
    plain, pool = (
        estimate(toy_config(outer_loops=loops, pool=pool, pool_samples=10), facts).flops
        for loops, pool in ((6, 0), (6, 4))
    )
    assert pool - plain == 40 * network_cost(toy_config().network, facts).flops_per_image


def test_at_the_tile_side_a_run_costs_what_smaller_images_do() -> None:
    """Of the evaluation, which sees enlarged tiles, nothing changes; nor does what the data take."""
    facts = DataFacts(name="x", channels=3, image_size=64, classes=("a", "b"), smallest_class=50)
    usual = toy_config(**FEATURE, network={"depth": 4, "width": 16})
    config = usual.model_copy(update={"at_tile_side": True})
    small = facts.model_copy(update={"image_size": 32})
    found = estimate(config, facts, speed=Speed(1e9, 1e9, 1e-3))
    alone = estimate(
        config.matched().model_copy(update={"at_tile_side": False}), small, speed=Speed(1e9, 1e9, 1e-3)
    )
    assert found.flops == alone.flops
    assert found.seconds_pool == alone.seconds_pool
    assert found.memory_bytes == pytest.approx(alone.memory_bytes + data_bytes(facts) - data_bytes(small))
    assert found.flops < estimate(usual, facts).flops / 3
    recipe = EvaluateConfig(network=usual.network)
    assert estimate(config, facts, recipe).flops - found.flops == pytest.approx(
        estimate(usual, facts, recipe).flops - estimate(usual, facts).flops
    )
