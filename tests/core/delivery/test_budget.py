"""Budget to k: the formulas, the rule, and that more budget never gives less."""

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdc_core.delivery import budget as rule
from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget, Cost, Plan, convnet_cost, plan
from mdc_core.delivery.manifest import Manifest, build_manifest, parse_manifest
from mdc_core.delivery.verdict import sizes_text
from mdc_core.errors import BudgetError, ConfigError

N = 5
INFO = rankmajor.SetInfo(N, 2, ("a", "b"), (0.5,), (0.25,), 8, 1)
DIGESTS = rankmajor.digests(rankmajor.pack(np.zeros(INFO.tile_shape(N), np.uint8), INFO), INFO)
COST = Cost(parameters=1000, activation_bytes=500, flops_per_image=1e6)
B = INFO.rank_bytes  # 2 classes, 4 tiles of 16 bytes: 128
IMAGE = 1e6 + 140 * 500  # operations, and bytes that are moved
STEP = 140 * 4 * 1000  # bytes of the weights
LIBRARIES = 4_000_000
DECODED = 2 * 4 * 8 * 8**2  # of a rank: 8 images of 8 x 8 floats, twice
RISING = {k: 0.5 + k / 20 for k in range(1, N + 1)}


def manifest_of(
    accuracy: dict[int, float],
    epochs: int = 10,
    random: dict[int, float] | None = None,
    std: float = 0.0,
    shorter: dict[int, dict[int, float]] | None = None,
) -> Manifest:
    """With `random`, where it has a value, as the accuracy of random real images; `std` is that of both.

    `shorter`: by epochs, accuracies of shorter trainings.
    """
    rows = [
        {
            "network": "net",
            "epochs": length,
            "k": k,
            "mdc_mean": mean,
            "mdc_std": std,
            "random_mean": (random or {}).get(k) if length == epochs else None,
            "random_std": std,
            "repeats": 3,
        }
        for length, measured in {epochs: accuracy, **(shorter or {})}.items()
        for k, mean in measured.items()
    ]
    return parse_manifest(
        build_manifest(
            name="toy",
            version=1,
            created="2030-01-01T00:00:00Z",
            expires=None,
            info=INFO,
            digests=DIGESTS,
            object_url="x",
            network={},
            recipe={"epochs": epochs, "batch_size": 16},
            accuracy=rows,
            cost={"net": COST.to_dict()},
        )
    )


MANIFEST = manifest_of(RISING)


def room_for(k: int) -> Budget:
    return Budget(storage_bytes=4096 + k * B)


def test_without_limits_the_whole_set() -> None:
    whole = plan(MANIFEST, Budget())
    assert (whole.k, whole.limited_by, whole.accuracy) == (N, None, RISING[N])
    assert (whole.seconds, whole.joules) == (None, None)
    assert whole.byte_range == (0, whole.total_bytes) == (0, 4096 + N * B)


def test_the_formulas() -> None:
    spending = Budget(flops=1e9, bandwidth_bps=8000, watts=2, have_k=2, epochs=20, batch_size=8)
    found = plan(MANIFEST, spending, at_most=3)
    images = 3 * 2 * 4
    seconds = 20 * (images * IMAGE + 3 * STEP) / 1e9 + 8 * B / 8000
    assert found == Plan(
        k=3,
        have_k=2,
        delta_bytes=B,
        byte_range=(4096 + 2 * B, 4096 + 3 * B),
        total_bytes=4096 + 3 * B,
        seconds=pytest.approx(seconds),  # type: ignore[arg-type]
        joules=pytest.approx(2 * seconds),  # type: ignore[arg-type]
        memory_bytes=4 * 1000 * 3 + 9000 + images * 8 * 8 * 8 + 3 * B + LIBRARIES,  # 2.25 * 500 * 8
        accuracy=RISING[3],
        limited_by=None,
        epochs=20,
    )
    assert json.loads(json.dumps(found.to_dict()))["byte_range"] == [4096 + 2 * B, 4096 + 3 * B]


def test_a_batch_is_no_larger_than_the_subset() -> None:
    expected = 12000 + 9000 + DECODED + B + LIBRARIES
    assert plan(MANIFEST, Budget(batch_size=1000), at_most=1).memory_bytes == expected


@pytest.mark.parametrize(
    ("budget", "resource"),
    [
        (Budget(storage_bytes=4096 + 2 * B), "storage_bytes"),
        (Budget(transfer_bytes=4096 + 3 * B - 1), "transfer_bytes"),
        (Budget(transfer_bytes=B, have_k=1), "transfer_bytes"),
        (Budget(memory_bytes=12000 + 18000 + 3 * (DECODED + B) + LIBRARIES - 1), "memory_bytes"),
        (Budget(seconds=10 * (16 * IMAGE + STEP) / 1e9, flops=1e9), "seconds"),
        (Budget(seconds=8 * (4096 + 2 * B) / 1000, bandwidth_bps=1000), "seconds"),
        (Budget(joules=3 * 10 * (16 * IMAGE + STEP) / 1e9, flops=1e9, watts=3), "joules"),
    ],
)
def test_every_limit_can_be_the_one_that_stops_at_two(budget: Budget, resource: str) -> None:
    found = plan(MANIFEST, budget)
    assert (found.k, found.limited_by) == (2, resource)


def test_a_device_that_has_more_fetches_nothing() -> None:
    found = plan(MANIFEST, Budget(have_k=4, storage_bytes=4096 + 2 * B, transfer_bytes=0))
    assert (found.k, found.delta_bytes) == (2, 0)
    assert found.byte_range[0] == found.byte_range[1]


def test_nothing_fits_names_the_limit_and_the_least_that_would_do() -> None:
    with pytest.raises(BudgetError, match=f"storage_bytes is 100, but it needs {4096 + B}") as caught:
        plan(MANIFEST, Budget(storage_bytes=100, memory_bytes=0))
    assert (caught.value.resource, caught.value.needed) == ("storage_bytes", 4096 + B)
    assert plan(MANIFEST, Budget(storage_bytes=4096 + B)).k == 1
    assert "memory_bytes" in str(caught.value)


def test_a_larger_size_that_is_measured_worse_is_not_taken() -> None:
    manifest = manifest_of({1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7, 5: 0.65})
    assert [plan(manifest, room_for(k)).k for k in range(1, 6)] == [1, 2, 2, 4, 4]
    found = plan(manifest, Budget())
    assert (found.limited_by, found.verdict) == ("accuracy", None)
    assert found.reason == f"k = 5 would fit, but is {SMALLER}"


RANDOM = "not better than random real images of the same count"
SMALLER = "worse than a smaller subset"


def test_of_equals_the_largest_is_taken() -> None:
    random = {1: 0.6, 2: 0.5, 3: 0.6, 4: 0.75, 5: 0.9}
    manifest = manifest_of({1: 0.55, 2: 0.6, 3: 0.6, 4: 0.7, 5: 0.7}, random=random)
    found = [plan(manifest, room_for(k)) for k in range(1, 6)]
    assert [p.k for p in found] == [1, 2, 3, 4, 5]
    assert [p.verdict for p in found] == [RANDOM, "better", RANDOM, RANDOM, RANDOM]
    assert [p.limited_by for p in found] == [*["storage_bytes"] * 4, None]


def test_a_difference_within_a_standard_error_of_the_best_is_none() -> None:
    """Over 3 networks 64.6 ± 2.8 has a standard error of 1.62: nothing tells 63.1 from it, but 62.9 is below."""
    assert plan(manifest_of({1: 0.646, 5: 0.631}, std=0.028), Budget()).k == 5
    found = plan(manifest_of({1: 0.646, 4: 0.631, 5: 0.629}, std=0.028), Budget())
    assert (found.k, found.accuracy, found.limited_by) == (4, 0.631, "accuracy")
    assert found.reason == "k = 5 would fit, but is measured to be less accurate"
    assert plan(manifest_of({1: 0.646, 5: 0.631}, std=0.028), Budget(metered=True)).k == 1
    assert plan(manifest_of({1: 0.646, 5: 0.631}), Budget()).k == 4  # which counts as 1


def test_within_a_standard_error_but_worse_than_a_smaller_size_is_not_taken() -> None:
    rows = [(1, 0.65, 0.09), (2, 0.64, 0.0), (3, 0.61, 0.0)]
    manifest = manifest_of({k: mean for k, mean, _ in rows})
    spread = [replace(row, mdc_std=std) for row, (*_, std) in zip(manifest.accuracy, rows, strict=True)]
    found = plan(replace(manifest, accuracy=tuple(spread)), Budget())
    assert (found.k, found.reason) == (2, f"k = 3-5 would fit, but is {SMALLER}")


def test_where_none_beats_random_images_the_most_accurate_is_taken() -> None:
    manifest = manifest_of({1: 0.5, 2: 0.7, 3: 0.6}, random=dict.fromkeys((1, 2, 3), 0.8))
    found = plan(manifest, room_for(4))
    assert (found.k, found.verdict) == (2, RANDOM)
    assert found.reason == f"k = 3-4 would fit, but is {SMALLER}"


def test_a_size_that_only_shrunk_images_match_is_as_good_as_any() -> None:
    manifest = manifest_of({1: 0.5, 2: 0.7}, random={1: 0.4, 2: 0.6})
    shrunk = [replace(row, shrunk_mean=0.3 * row.k + 0.1, shrunk_std=0.0) for row in manifest.accuracy]
    found = plan(replace(manifest, accuracy=tuple(shrunk)), room_for(2))
    assert (found.k, found.verdict) == (2, "not better than real images of the same bytes")


def test_a_size_that_is_named_is_taken_as_far_as_it_fits() -> None:
    manifest = manifest_of({1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7, 5: 0.65})
    assert [plan(manifest, Budget(), at_most=k).k for k in range(1, 6)] == [1, 2, 3, 4, 5]
    found = plan(manifest, room_for(3), at_most=5)
    assert (found.k, found.limited_by) == (3, "storage_bytes")
    assert plan(manifest, room_for(5), at_most=3).limited_by is None


def test_a_metered_connection_fetches_only_what_is_measured_to_help() -> None:
    manifest = manifest_of({1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7, 5: 0.65})
    assert plan(manifest, Budget(metered=True)).k == 2
    assert plan(manifest, Budget(metered=True, have_k=3)).k == 2
    assert plan(manifest, Budget(metered=True, have_k=4)).k == 4


def test_a_named_size_is_taken_on_a_metered_connection_too() -> None:
    assert plan(manifest_of({1: 0.5}), Budget(metered=True), at_most=3).k == 3
    assert plan(manifest_of({}), Budget(metered=True), at_most=2).k == 2


def test_unmeasured_sizes_count_as_the_next_smaller_measured_one() -> None:
    manifest = manifest_of({2: 0.6, 4: 0.5})
    found = [plan(manifest, room_for(k)) for k in range(1, 6)]
    assert [p.k for p in found] == [1, 2, 3, 3, 3]
    assert [p.accuracy for p in found] == [None, 0.6, 0.6, 0.6, 0.6]
    assert plan(manifest_of({}), Budget()).k == N


def test_accuracy_is_that_of_the_longest_training_within_the_epochs() -> None:
    assert plan(MANIFEST, Budget(epochs=9)).accuracy is None
    assert plan(MANIFEST, Budget(epochs=11)).accuracy == RISING[N]


SEVERAL = manifest_of(
    {1: 0.5, 3: 0.8, 5: 0.9},
    epochs=100,
    shorter={30: {1: 0.45, 3: 0.7, 5: 0.85}, 10: {1: 0.3, 3: 0.5, 5: 0.6}},
)


def seconds_of(k: int, epochs: int) -> float:
    """Of a training on subset k in steps of 16, at 10⁹ operations per second."""
    return epochs * (k * 8 * IMAGE + -(-k * 8 // 16) * STEP) / 1e9


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (seconds_of(5, 100), (5, 100, 0.9)),
        (0.99 * seconds_of(5, 100), (5, 30, 0.85)),  # rather than three images for 100 epochs
        (0.99 * seconds_of(5, 30), (4, 30, 0.7)),  # 4 counts as 3
        (0.99 * seconds_of(3, 30), (5, 10, 0.6)),
        (seconds_of(1, 10), (1, 10, 0.3)),
    ],
)
def test_few_seconds_go_where_they_are_best_spent(seconds: float, expected: tuple[int, int, float]) -> None:
    found = plan(SEVERAL, Budget(flops=1e9, seconds=seconds))
    assert (found.k, found.epochs, found.accuracy) == expected
    assert found.seconds is not None
    assert found.seconds <= seconds
    energy = plan(SEVERAL, Budget(flops=1e9, joules=3 * seconds, watts=3))
    assert (energy.k, energy.epochs) == expected[:2]


def test_where_no_time_is_short_the_longest_training_is_planned() -> None:
    for budget in (Budget(), Budget(flops=1e9), Budget(seconds=1, bandwidth_bps=1e9), room_for(3)):
        assert plan(SEVERAL, budget).epochs == 100
    given = plan(SEVERAL, Budget(flops=1e9, seconds=seconds_of(5, 40), epochs=40))
    assert (given.k, given.epochs, given.accuracy) == (5, 40, 0.85)


def test_a_named_size_comes_before_its_epochs() -> None:
    few = Budget(flops=1e9, seconds=seconds_of(3, 30))
    assert (plan(SEVERAL, few, at_most=5).k, plan(SEVERAL, few, at_most=5).epochs) == (5, 10)
    assert (plan(SEVERAL, few, at_most=3).k, plan(SEVERAL, few, at_most=3).epochs) == (3, 30)


def test_an_accuracy_may_be_reached_by_a_shorter_training_of_more_images() -> None:
    few = Budget(flops=1e9, seconds=seconds_of(5, 30), min_accuracy=0.8)
    assert seconds_of(3, 100) > seconds_of(5, 30)
    assert (plan(SEVERAL, few).k, plan(SEVERAL, few).epochs) == (5, 30)
    with pytest.raises(BudgetError, match="too small for subset 3"):
        plan(SEVERAL, replace(few, seconds=seconds_of(1, 10)))


@given(st.floats(0.001, 2), st.floats(0, 2))
def test_more_time_never_gives_less_accuracy(seconds: float, more: float) -> None:
    try:
        before = plan(SEVERAL, Budget(flops=1e9, seconds=seconds))
    except BudgetError:
        return
    after = plan(SEVERAL, Budget(flops=1e9, seconds=seconds + more))
    assert (after.accuracy or 0) >= (before.accuracy or 0)  # nothing is known of the spread


def test_min_accuracy_takes_the_least_that_reaches_it() -> None:
    manifest = manifest_of({1: 0.5, 2: 0.7, 3: 0.6, 4: 0.8, 5: 0.9})
    found = plan(manifest, Budget(min_accuracy=0.6))
    assert (found.k, found.limited_by, found.reason) == (2, "min_accuracy", None)
    with pytest.raises(BudgetError, match=r"0\.95.*0\.9000") as caught:
        plan(manifest, Budget(min_accuracy=0.95))
    assert (caught.value.resource, caught.value.needed) == ("min_accuracy", 0.9)
    with pytest.raises(BudgetError, match="subset 4") as caught:
        plan(manifest, Budget(min_accuracy=0.75, storage_bytes=4096 + 3 * B))
    assert (caught.value.resource, caught.value.needed) == ("storage_bytes", 4096 + 4 * B)


def test_what_the_manifest_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"have_k is 6.*0\.\.5"):
        plan(MANIFEST, Budget(have_k=6))
    with pytest.raises(ConfigError, match=r"k is 6.*1\.\.5"):
        plan(MANIFEST, Budget(), at_most=6)
    with pytest.raises(ConfigError, match=r"'resnet'.*net"):
        plan(MANIFEST, Budget(network="resnet"))


LIMITS: dict[str, tuple[float, float]] = {
    "storage_bytes": (4096, 4096 + N * B),
    "transfer_bytes": (0, 4096 + N * B),
    "memory_bytes": (LIBRARIES + 24_000, LIBRARIES + 52_000),
    "seconds": (0, 10),
    "joules": (0, 30),
}
budgets = st.fixed_dictionaries(
    {"flops": st.floats(1e7, 1e10), "bandwidth_bps": st.floats(1e3, 1e6), "watts": st.floats(0.5, 5)},
    optional={name: st.integers(int(low), int(high)) for name, (low, high) in LIMITS.items()}
    | {
        "have_k": st.integers(0, N),
        "metered": st.booleans(),
        "min_accuracy": st.sampled_from([0.2, 0.5, 0.8]),
    },
)
larger = st.fixed_dictionaries(
    {}, optional={name: st.integers(0, 5000) for name in (*LIMITS, "flops", "bandwidth_bps")}
)
measured = st.dictionaries(st.integers(1, N), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))
spreads = st.sampled_from([0.0, 0.1, 0.3])


@settings(max_examples=300)
@given(
    measured,
    measured,
    spreads,
    budgets,
    larger,
    st.sampled_from(["add", "drop"]),
    st.booleans(),
    st.none() | st.integers(1, N),
)
def test_more_budget_never_gives_less(
    accuracy: dict[int, float],
    random: dict[int, float],
    std: float,
    small: dict[str, Any],
    more: dict[str, int],
    way: str,
    unmeter: bool,
    at_most: int | None,
) -> None:
    large = dict(small)
    for name, extra in more.items():
        if way == "add" and name in small:
            large[name] = small[name] + extra
        elif way == "drop" and name in LIMITS:
            large.pop(name, None)
    if unmeter:
        large.pop("metered", None)
    manifest = manifest_of(accuracy, random=random, std=std)
    try:
        before = plan(manifest, Budget(**small), at_most)
    except BudgetError:
        return
    after = plan(manifest, Budget(**large), at_most)
    assert after.k >= before.k
    error = std / math.sqrt(3)
    assert at_most is not None or (after.accuracy or -1) >= (before.accuracy or -1) - error - 1e-9


@given(measured, budgets)
def test_a_plan_keeps_every_limit_and_a_refusal_is_true(
    accuracy: dict[int, float], fields: dict[str, Any]
) -> None:
    manifest = manifest_of(accuracy)
    refused: BudgetError | None = None
    try:
        found = plan(manifest, Budget(**fields))
    except BudgetError as error:
        refused = error
    if refused is not None:
        if refused.resource == "min_accuracy":
            assert max(accuracy.values(), default=0.0) == refused.needed < fields["min_accuracy"]
        else:
            assert refused.needed > fields[refused.resource]
        return
    needs = {"storage_bytes": found.total_bytes, "transfer_bytes": found.delta_bytes}
    needs |= {"memory_bytes": found.memory_bytes or 0}
    assert all(need <= fields.get(name, need) for name, need in needs.items())
    assert (found.seconds or 0) <= fields.get("seconds", np.inf)
    assert (found.joules or 0) <= fields.get("joules", np.inf)


def test_a_budget_from_query_fields() -> None:
    text = {"memory_bytes": "1e6", "seconds": "2.5", "flops": "1e9", "metered": "true", "network": "net"}
    expected = Budget(memory_bytes=1_000_000, seconds=2.5, flops=1e9, metered=True, network="net")
    assert Budget.from_mapping(text) == expected
    assert Budget.from_mapping(expected.to_dict()) == expected
    assert Budget.from_mapping({}) == Budget()


NUMBERS = [field.name for field in fields(Budget) if field.name not in ("metered", "network")]
EXTREMES = [0.0, 5e-324, 1e-320, 1e-3, 1.0, 2.5, 2.0**53, 1e24, 1e25, 1.7e308, math.inf, math.nan]
numbers = st.sampled_from(EXTREMES) | st.integers() | st.floats() | st.sampled_from([10**400, 10**5000])


@settings(max_examples=500)
@given(
    st.dictionaries(st.sampled_from(NUMBERS), numbers, max_size=4),
    st.fixed_dictionaries({"flops": st.just(1e-3), "bandwidth_bps": st.just(1e-3), "watts": st.just(1e24)}),
)
def test_whatever_the_numbers_are_the_answer_is_finite(given: dict[str, Any], rates: dict[str, Any]) -> None:
    try:
        told: object = plan(MANIFEST, Budget.from_mapping({**rates, **given})).to_dict()
    except BudgetError as error:
        told = error.needed
    except ConfigError as error:
        told = str(error)
    assert len(json.dumps(told, allow_nan=False)) < 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": 1}, "no field 'memory'"),
        ({"memory_bytes": -1}, "memory_bytes is -1"),
        ({"memory_bytes": "1.5"}, "memory_bytes is 1.5: give a whole"),
        ({"memory_bytes": "lots"}, "memory_bytes is 'lots'"),
        ({"memory_bytes": True}, "memory_bytes is True"),
        ({"memory_bytes": "inf"}, "memory_bytes is inf"),
        ({"memory_bytes": 10**400}, "memory_bytes is 1000"),
        ({"watts": "nan"}, "watts is nan"),
        ({"seconds": float("inf"), "flops": 1}, "seconds is inf"),
        ({"flops": 1e-320, "seconds": 1}, "flops is 1e-320"),
        ({"bandwidth_bps": 5e-324, "seconds": 1}, "bandwidth_bps is 5e-324"),
        ({"watts": 10**5000}, "watts is a number of thousands of digits"),
        ({"epochs": 10**300}, "epochs is 1000"),
        ({"x" * 100_000: 1}, "no field 'xxxx"),
        ({"network": 7}, "network is 7"),
        ({"flops": 0}, "flops is 0: give a number from 0.001 to 1e"),
        ({"epochs": 0}, "epochs is 0: give a number from 1 to 1e"),
        ({"have_k": -1}, "have_k is -1"),
        ({"min_accuracy": 90}, "min_accuracy is 90: give a number from 0 to 1"),
        ({"metered": "maybe"}, "metered is 'maybe'"),
        ({"network": ""}, "network is ''"),
        ({"seconds": 5}, "flops or bandwidth_bps"),
        ({"joules": 5, "flops": 1}, "give watts"),
    ],
)
def test_a_nonsense_budget_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget.from_mapping(fields)


def test_the_largest_numbers_of_a_manifest_give_finite_plans() -> None:
    most = Cost(parameters=int(1e24), activation_bytes=1e24, flops_per_image=1e24, optimiser_states=int(1e24))
    manifest = replace(MANIFEST, cost={"net": most}, info=replace(INFO, ipc=2**20))
    budget = Budget(flops=1e-3, bandwidth_bps=1e-3, watts=1e24, epochs=10**9, batch_size=10**9)
    json.dumps(plan(manifest, budget, at_most=2).to_dict(), allow_nan=False)


def test_the_convnet_of_the_published_runs() -> None:
    cost = convnet_cost(depth=3, width=128, channels=3, image_size=32, classes=10)
    assert cost.parameters == 320_010
    assert cost.flops_per_image / 1e6 == pytest.approx(297, abs=0.5)
    assert cost.activation_bytes / 2**20 == pytest.approx(1.48, abs=0.005)
    # First convolution, second, third, head: multiply-adds of the forward pass.
    forward = 2 * (27 * 128 * 32**2 + 1152 * 128 * 16**2 + 1152 * 128 * 8**2 + 2048 * 10)
    assert forward / 1e6 == pytest.approx(101.5, abs=0.05)
    assert cost.flops_per_image == 3 * forward - 2 * 27 * 128 * 32**2
    assert Cost.from_dict(cost.to_dict()) == cost


@pytest.mark.parametrize("image_size", [28, 32, 9])
def test_the_analytic_cost_is_what_a_torch_network_keeps(image_size: int) -> None:
    torch = pytest.importorskip("torch")
    layers: list[Any] = []
    for block in range(2):
        padding = 3 if (image_size, block) == (28, 0) else 1
        convolution = torch.nn.Conv2d(1 if block == 0 else 8, 8, 3, padding=padding)
        layers += [convolution, torch.nn.GroupNorm(8, 8), torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
    side = ((32 if image_size == 28 else image_size) // 2) // 2
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * side**2, 10))
    image = torch.zeros(1, 1, image_size, image_size)
    kept: dict[int, int] = {}
    known = {tensor.data_ptr() for tensor in [*network.parameters(), image]}

    def keep(tensor: Any) -> Any:
        # Feature maps only: the norm keeps two small statistics per channel as well.
        if tensor.data_ptr() not in known and tensor.numel() > 8:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image)
    cost = convnet_cost(depth=2, width=8, channels=1, image_size=image_size, classes=10)
    assert output.shape == (1, 10)
    assert cost.parameters == sum(tensor.numel() for tensor in network.parameters())
    assert cost.activation_bytes == sum(kept.values())


def test_a_network_deeper_than_the_image_has_halvings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"depth is 4.*halved 3 times"):
        convnet_cost(4, 8, 1, 8, 2)


def literal_choice(manifest: Manifest, feasible: list[Plan], budget: Budget, at_most: int | None) -> Plan:
    """`std` and the repeats are those of every row."""

    def accuracy(one: Plan) -> float:
        return -1.0 if one.accuracy is None else one.accuracy

    if at_most is not None:
        return max(feasible, key=lambda one: (one.k, accuracy(one), -one.epochs))
    if budget.metered:
        return max(feasible, key=lambda one: (accuracy(one), -one.delta_bytes, one.k, -one.epochs))
    best = max(map(accuracy, feasible))
    error = manifest.accuracy[0].mdc_std / math.sqrt(3) if best >= 0 else 0.0
    good = [one for one in feasible if accuracy(one) >= best - error and one.verdict != SMALLER]
    return max(good, key=lambda one: (one.k, accuracy(one), -one.epochs))


def literal_plan(manifest: Manifest, budget: Budget, at_most: int | None) -> Plan:
    """The rule as it is written: every size with every training, and the first in the order of those that fit."""
    top = manifest.info.ipc if at_most is None else at_most
    trainings = rule._trainings(manifest, budget)
    candidates = [
        rule._candidate(manifest, budget, training, k) for k in range(1, top + 1) for training in trainings
    ]
    feasible = [one for one in candidates if not list(rule._excesses(one, budget))]
    if budget.min_accuracy is not None:
        reaching = [one for one in candidates if (one.accuracy or 0.0) >= budget.min_accuracy]
        if not reaching:
            raise BudgetError(
                "", "min_accuracy", max((one.accuracy or 0.0 for one in candidates), default=0.0)
            )
        chosen = next((one for one in reaching if one in feasible), reaching[0])
    elif feasible:
        chosen = literal_choice(manifest, feasible, budget, at_most)
    else:
        chosen = candidates[0]
    if chosen not in feasible:
        field, _, need = next(rule._excesses(chosen, budget))
        raise BudgetError("", field, need)
    limited_by, reason = None, None
    for following in candidates:
        if following.epochs == chosen.epochs and following.k == chosen.k + 1:
            excesses = [field for field, _, _ in rule._excesses(following, budget)]
            limited_by = next(iter(excesses), "accuracy" if budget.min_accuracy is None else "min_accuracy")
    if budget.min_accuracy is None:
        groups: dict[str, list[int]] = {}
        for one in feasible:
            if one.epochs == chosen.epochs and one.k > chosen.k:
                why = "not measured to be more accurate" if budget.metered else "measured to be less accurate"
                groups.setdefault(SMALLER if one.verdict == SMALLER else why, []).append(one.k)
        reason = (
            "; ".join(f"k = {sizes_text(ks)} would fit, but is {why}" for why, ks in groups.items()) or None
        )
    return replace(chosen, limited_by=limited_by, reason=reason)


@settings(max_examples=500)
@given(
    measured,
    measured,
    spreads,
    measured,
    budgets,
    st.none() | st.integers(1, N),
)
def test_the_plan_is_that_of_the_literal_rule(
    accuracy: dict[int, float],
    random: dict[int, float],
    std: float,
    shorter: dict[int, float],
    given: dict[str, Any],
    at_most: int | None,
) -> None:
    manifest = manifest_of(accuracy, random=random, std=std, shorter={3: shorter} if shorter else None)

    def outcome(rule_: Any) -> Any:
        try:
            return rule_(manifest, Budget(**given), at_most)
        except BudgetError as error:
            return error.resource, error.needed

    assert outcome(plan) == outcome(literal_plan)
