"""A shorter run: as long as was asked for, by the estimate, and valid on the same data."""

from __future__ import annotations

import pytest

from mdc_core.config.estimate import Speed, estimate
from mdc_core.config.presets import condense_config, evaluate_config, merge
from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig
from mdc_core.config.shorten import WANTED_LOOPS, Run, duration

SPEED = Speed(2e11, 2.5e9, 1e-3)
"""One core."""
HOUR, DAY = 3600.0, 86_400.0


def pictures(side: int = 64, own: int | None = 400) -> DataFacts:
    return DataFacts(
        name="x", channels=3, image_size=side, classes=tuple("0123456789"), smallest_class=500, own_side=own
    )


@pytest.mark.parametrize("seconds", [600, HOUR, DAY])
@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize(("preset", "side"), [("photos", 64), ("cifar10", 32), ("imagenet-10", 224)])
@pytest.mark.parametrize("method", ["idc", "feature"])
def test_it_takes_what_it_says_and_no_more_than_was_wanted(
    method: str, preset: str, side: int, judged: bool, seconds: float
) -> None:
    facts, config = pictures(side), condense_config(preset, {"method": method})
    recipe = None
    if judged:
        network = {"network": config.network.model_dump()}
        recipe = evaluate_config(preset, network, ipc=config.ipc, factor=config.factor)
    less = Run(preset, config, facts, recipe, SPEED).shorter(seconds)
    changed = CondenseConfig.model_validate(merge(config.model_dump(), less.condense))
    if less.image_size is not None:
        facts = facts.model_copy(update={"image_size": less.image_size})
    changed.check_data(facts)
    if recipe is not None:
        recipe = EvaluateConfig.model_validate(merge(recipe.model_dump(), less.evaluate))
        assert recipe.network == changed.network
    assert estimate(changed, facts, recipe, speed=SPEED).seconds_total == pytest.approx(less.seconds)
    possible = changed.outer_loops > 1 and (recipe is None or recipe.epochs > 50)
    assert less.seconds <= seconds or not possible
    if (
        changed.outer_loops < config.outer_loops and less.seconds <= seconds
    ):  # no time is left for another loop
        loop = estimate(changed, facts, speed=SPEED).seconds_per_outer_loop
        assert loop is not None
        assert less.seconds + loop > seconds


def test_loops_go_first_and_cheaper_ones_come_when_few_are_left() -> None:
    config, facts = condense_config("cifar10", {}), pictures(32)
    loop = estimate(config, facts, speed=SPEED).seconds_per_outer_loop
    assert loop is not None
    enough = Run("cifar10", config, facts, None, SPEED).shorter(30.5 * loop)
    assert enough.condense == {"outer_loops": 30, "mls_period": 3}
    few = Run("cifar10", config, facts, None, SPEED).shorter(10.5 * loop)
    assert few.condense["network"] == {"width": 64}
    assert few.condense["outer_loops"] >= WANTED_LOOPS
    unchanged = Run("cifar10", config, facts, None, SPEED).shorter(2001 * loop)
    assert (unchanged.condense, unchanged.image_size) == ({}, None)


def test_networks_of_a_pool_leave_half_of_the_time() -> None:
    """They see fewer images, but not too few to know the classes; the pool stays as it is where there is time."""
    config, facts = condense_config("cifar10", {"method": "feature"}), pictures(32)
    pool = estimate(config, facts, speed=SPEED).seconds_pool
    assert pool is not None
    assert "pool_samples" not in Run("cifar10", config, facts, None, SPEED).shorter(2 * pool).condense
    half = Run("cifar10", config, facts, None, SPEED).shorter(pool)
    assert half.condense["pool_samples"] == pytest.approx(50_000, rel=0.01)
    assert half.seconds <= pool
    least = Run("cifar10", config, facts, None, SPEED).shorter(1)
    assert least.condense["pool_samples"] == 10_000


def test_images_are_made_smaller_last_and_only_where_they_are_resized() -> None:
    config = condense_config("imagenet-10", {})
    small = Run("mine", config, pictures(224), None, SPEED).shorter(HOUR)
    assert (small.image_size, small.preset) == (32, "mine")
    fixed = Run("mine", config, pictures(224, own=None), None, SPEED).shorter(HOUR)
    assert (fixed.image_size, fixed.preset) == (None, None)
    assert fixed.condense["inner_iterations"] == 20
    deep = condense_config("photos", {"network": {"depth": 6}})  # 32 pixels cannot be halved six times
    assert Run("mine", deep, pictures(128), None, SPEED).shorter(60).image_size is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0321, "0.032 s"), (89, "89 s"), (725, "12 min"), (54_000, "15 h"), (4e5, "4.6 days")],
)
def test_durations_have_two_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text
