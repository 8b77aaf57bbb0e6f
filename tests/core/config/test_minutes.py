"""A given time, spent: by the rule, to the end, and never more than it."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from mdc_core.config.defaults import WIDTHS, choose
from mdc_core.config.estimate import Speed, estimate
from mdc_core.config.minutes import Machine, Pace, Size, Timed, Wanted, divided, in_time, pace_of, size_of
from mdc_core.config.presets import evaluate_config
from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig
from mdc_core.errors import ConfigError

CORE = Machine(Speed(2e11, 2.5e9, 1e-3), 16 * 10**9)
"""One core."""
TIMES = [60 * minutes for minutes in (3, 5, 10, 20, 60, 300, 3000)]


def pictures(side: int = 64, each: int = 100, own_side: int | None = None) -> DataFacts:
    return DataFacts(
        name="x",
        channels=3,
        image_size=side,
        classes=tuple("0123456789"),
        smallest_class=each,
        images=10 * each,
        test_images=2 * each,
        own_side=own_side,
    )


def wanted(facts: DataFacts, *, judged: bool = False, width: int | None = None, **given: object) -> Wanted:
    choice = choose(facts, None, {} if width is None else {"network": {"width": width}}, is_own=True)

    def recipe(config: CondenseConfig) -> EvaluateConfig:
        own = {"network": config.network.model_dump(), **given}
        return evaluate_config(choice.preset, own, ipc=config.ipc, factor=config.factor)

    return Wanted(
        choice.condense,
        facts,
        choice.widths,
        recipe=recipe if judged else None,
        given=frozenset(given),
    )


DATA = [pictures(), pictures(32, 5000), pictures(8, 140)]


@pytest.mark.parametrize("facts", DATA, ids=lambda facts: facts.image_size)
@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("seconds", TIMES)
def test_it_takes_what_it_says_which_is_all_but_a_little_of_the_time(
    facts: DataFacts, judged: bool, seconds: float
) -> None:
    found = in_time(wanted(facts, judged=judged), seconds, CORE)
    expected = estimate(
        found.condense, facts, found.evaluate, speed=CORE.speed, memory_limit=CORE.memory_bytes
    )
    assert expected.seconds_total == pytest.approx(found.seconds, rel=0.01)
    assert found.seconds <= 0.96 * seconds
    assert found.seconds >= 0.8 * seconds or found.chosen.endswith("more time would bring nothing")
    found.condense.check_data(facts)
    assert found.condense.pool <= 5
    assert found.condense.outer_loops * found.condense.inner_iterations <= 300
    if found.evaluate is not None:
        assert found.evaluate.network == found.condense.network
        assert found.seconds_evaluation <= 0.5 * seconds


@pytest.mark.parametrize("facts", DATA, ids=lambda facts: facts.image_size)
def test_more_time_gives_more_of_everything(facts: DataFacts) -> None:
    runs = [in_time(wanted(facts, width=32), seconds, CORE).condense for seconds in TIMES]
    for less, more in pairwise(runs):
        assert more.pool >= less.pool
        assert more.pool * more.pool_samples >= less.pool * less.pool_samples
        assert more.outer_loops * more.inner_iterations >= less.outer_loops * less.inner_iterations
    widths = [in_time(wanted(facts), seconds, CORE).condense.network.width for seconds in TIMES]
    assert widths == sorted(widths)


def test_most_of_the_time_trains_the_pool_and_few_networks_are_trained_well() -> None:
    def at(seconds: float) -> tuple[int, int, int]:
        found = divided(seconds, Pace(sample=1e-3, update=0.1), 50_000)
        assert found is not None
        assert 0.8 * seconds <= found.networks * found.samples * 1e-3 + found.updates * 0.1 <= seconds
        return found.networks, found.samples, found.updates

    assert at(40) == (1, 28_000, 120)
    assert at(70) == (2, 25_000, 200)
    assert at(114) == (3, 28_000, 300)
    assert at(300) == (3, 90_000, 300)
    assert at(460) == (4, 100_000, 300)
    assert at(5000) == (5, 900_000, 300)
    assert divided(3.7, Pace(1e-3, 0.1), 50_000) is None, "too few updates"
    assert divided(40, Pace(2e-2, 0.1), 50_000) is None, "too few samples"


def test_about_the_same_time_takes_the_same_pool() -> None:
    """One that an earlier run has trained is found again, though no pace is measured twice alike."""
    found = [divided(300 * share, Pace(sample=1e-3, update=0.1), 50_000) for share in (1.02, 1.04, 1.06)]
    assert len({(division.networks, division.samples) for division in found if division}) == 1


def test_the_widest_network_takes_no_more_than_brings_anything() -> None:
    """A hundred epochs, or 100 000 samples where these are more."""
    for images, most in ((1438, 140_000), (50_000, 5_000_000), (200, 100_000)):
        found = divided(10**6, Pace(sample=1e-3, update=0.1), images, is_widest=True)
        assert found is not None
        assert (found.networks, found.samples, found.updates) == (5, most, 300)
    assert in_time(wanted(pictures(8, 140)), 10**6, CORE).chosen.endswith("more time would bring nothing")


def test_of_few_images_epochs_count() -> None:
    """200 images are seen twenty times by 4000 samples, and a hundred times by 20 000."""
    few = divided(10, Pace(1e-3, 0.01), 200)
    assert few is not None
    assert few.networks == 1
    more = divided(15, Pace(1e-3, 0.01), 200)
    assert more is not None
    assert (more.networks, more.samples) == (3, 4000)
    many = divided(110, Pace(1e-3, 0.01), 200)
    assert many is not None
    assert many.networks == 5


def test_a_network_is_as_wide_as_the_time_is_enough_for() -> None:
    facts = pictures(32, 5000)
    for seconds in TIMES:
        found = in_time(wanted(facts), seconds, CORE)
        width = found.condense.network.width
        if width > 32:
            assert found.condense.pool * found.condense.pool_samples >= 297_000
            assert found.condense.outer_loops * found.condense.inner_iterations >= 100
        if width < 128:
            wider = in_time(wanted(facts, width=2 * width), seconds, CORE).condense
            assert (
                wider.pool * wider.pool_samples < 297_000 or wider.outer_loops * wider.inner_iterations < 100
            )
            assert f"networks of width {2 * width} would be trained too little" in found.chosen
    assert in_time(wanted(facts, width=48), 600, CORE).condense.network.width == 48


def updates(config: CondenseConfig) -> int:
    return config.outer_loops * config.inner_iterations


SLOW = Machine(Speed(8e10, 1e9, 2e-3), 16 * 10**9)
"""A core that others use too."""


@pytest.mark.parametrize("may_shrink", [False, True])
@pytest.mark.parametrize("side", [64, 96, 128])
@pytest.mark.parametrize("machine", [CORE, SLOW])
def test_cheaper_networks_are_for_runs_of_few_updates(side: int, machine: Machine, may_shrink: bool) -> None:
    asked = replace(wanted(pictures(side)), may_shrink=may_shrink)
    for seconds in TIMES:
        found = in_time(asked, seconds, machine, or_longer=True)
        usual = in_time(wanted(pictures(side), width=32), seconds, machine, or_longer=True)
        if found.condense.network.width == 16 or found.condense.at_tile_side:
            assert updates(usual.condense) < 50 or usual.seconds > seconds
        else:
            assert updates(found.condense) >= 50
            assert found.warning is None
        assert may_shrink or not found.condense.at_tile_side
        assert found.condense.network.width >= 32 or found.condense.at_tile_side == may_shrink


def test_at_few_updates_networks_see_tiles_as_they_are_and_then_are_narrow() -> None:
    def at(seconds: float, machine: Machine, *, may_shrink: bool = True) -> Timed:
        return in_time(replace(wanted(pictures(128)), may_shrink=may_shrink), seconds, machine)

    wide = in_time(wanted(pictures(128), width=32), 600, CORE)
    small, narrow = at(600, CORE), at(600, CORE, may_shrink=False)
    assert updates(wide.condense) < 50
    assert (small.condense.network.width, small.condense.at_tile_side) == (32, True)
    assert (narrow.condense.network.width, narrow.condense.at_tile_side) == (16, False)
    assert updates(small.condense) > updates(narrow.condense) >= 50
    assert small.warning is None
    assert small.chosen.startswith(
        "Chosen for the time: 3 networks of width 32 at the tile side, trained on "
    )
    assert small.chosen.endswith(f"; networks of width 32 would leave {updates(wide.condense)} updates")
    last = at(180, CORE)
    assert (last.condense.network.width, last.condense.at_tile_side) == (16, True)
    assert "; networks of width 32 at the tile side would leave " in last.chosen


def test_a_size_that_was_found_too_slow_is_not_tried_again() -> None:
    asked = replace(wanted(pictures(128)), may_shrink=True)
    first = in_time(asked, 600, CORE)
    assert size_of(first.condense) == Size(32, at_tile_side=True)
    again = in_time(replace(asked, largest=size_of(first.condense)), 6000, CORE)
    assert size_of(again.condense) == size_of(first.condense)


def test_too_few_updates_are_told_with_a_time_and_a_side_that_are_enough() -> None:
    few = in_time(wanted(pictures(128, own_side=400)), 600, SLOW)
    assert few.condense.network.width == 16
    assert updates(few.condense) < 50
    assert few.warning is not None
    told = re.fullmatch(
        r"(\d+) updates are too few for images of 128 pixels: the set may be no better than shrunk real images\. "
        r"Ask for (\d+) minutes, images of (\d+) pixels \(image_size\), or a smaller ipc",
        few.warning,
    )
    assert told is not None
    count, minutes, side = map(int, told.groups())
    assert count == updates(few.condense)
    assert minutes > 10
    assert in_time(wanted(pictures(128, own_side=400)), 60 * minutes, SLOW).warning is None
    assert side < 128
    smaller = in_time(wanted(pictures(side, own_side=400)), 600, SLOW)
    assert updates(smaller.condense) >= 50
    assert smaller.warning is None


def test_a_side_is_proposed_only_for_images_that_are_resized() -> None:
    fixed = in_time(wanted(pictures(128)), 600, SLOW)
    assert fixed.warning is not None
    assert "pixels (image_size)" not in fixed.warning
    least = in_time(wanted(pictures(8, 10)), 1, Machine(Speed(1e8, 1e7, 1e-2)), or_longer=True)
    assert least.condense.factor == 1
    assert least.warning is not None
    assert "no better than real images" in least.warning


def test_a_width_that_does_not_fit_is_not_chosen() -> None:
    facts = pictures(32, 5000)
    most = in_time(wanted(facts), 3000 * 60, CORE)
    assert most.condense.network.width == WIDTHS["convnet"][0]
    needs = estimate(most.condense, facts).memory_bytes
    found = in_time(wanted(facts), 3000 * 60, replace(CORE, memory_bytes=needs - 10**6))
    assert found.condense.network.width == WIDTHS["convnet"][1]
    assert "would take too much memory" in found.chosen


def test_too_little_time_is_refused_with_how_much_it_takes_or_prolonged() -> None:
    with pytest.raises(
        ConfigError, match=r"2 s are left for the run, but it takes at least .* ask for more minutes"
    ):
        in_time(wanted(pictures()), 2, CORE)
    least = in_time(wanted(pictures()), 2, CORE, or_longer=True)
    assert 20 < least.seconds < 300
    assert in_time(wanted(pictures()), 1.2 * least.seconds, CORE).seconds >= least.seconds


def test_what_takes_more_than_a_year_is_refused_soon() -> None:
    asked = wanted(pictures(), judged=True, epochs=10**9)
    begun = time.process_time()
    with pytest.raises(ConfigError, match="more than a year"):
        in_time(asked, 1, CORE, or_longer=True)
    assert time.process_time() - begun < 10


def test_a_measured_pace_goes_before_the_expected_one() -> None:
    facts = pictures(32, 5000)
    plain = in_time(wanted(facts, width=32), 600, CORE)
    expected = pace_of(plain.condense, facts, CORE)
    assert plain.pace.sample == pytest.approx(expected.sample, rel=1e-3)
    assert plain.pace.update == pytest.approx(expected.update)
    slow = in_time(wanted(facts, width=32), 600, CORE, lambda pace: Pace(2 * pace.sample, pace.update))
    assert slow.seconds_matching == plain.seconds_matching
    samples = plain.condense.pool * plain.condense.pool_samples
    assert slow.condense.pool * slow.condense.pool_samples == pytest.approx(samples / 2, rel=0.02)


def test_an_evaluation_loses_networks_and_sizes_before_epochs() -> None:
    facts = pictures()
    tight, ample = (
        in_time(wanted(facts, judged=True), seconds, CORE).evaluate for seconds in (600, 60 * 3000)
    )
    assert tight is not None
    assert ample is not None
    assert (ample.sizes, ample.repeats) == (None, 3)
    assert tight.sizes is not None
    assert {1, 10} <= set(tight.sizes)
    assert tight.epochs >= 100
    assert tight.repeats <= 3


def test_epochs_become_few_only_where_nothing_else_is_left() -> None:
    slow = Machine(Speed(4e10, 4.4e8, 2.6e-3))
    tight, ample = (
        in_time(wanted(pictures(), judged=True), seconds, slow, or_longer=True).evaluate
        for seconds in (1, 1200)
    )
    assert tight is not None
    assert ample is not None
    assert 20 <= tight.epochs < 100 <= ample.epochs
    assert (tight.sizes, tight.repeats) == ((1, 10), 1)


def test_what_is_asked_of_an_evaluation_stays() -> None:
    facts = pictures()
    asked = wanted(facts, judged=True, sizes=(2, 4), repeats=2, epochs=60)
    found = in_time(asked, 1200, CORE).evaluate
    assert found is not None
    assert (found.sizes, found.repeats, found.epochs) == ((2, 4), 2, 60)
    with pytest.raises(ConfigError, match="it takes at least"):
        in_time(wanted(facts, judged=True, epochs=5000), 600, CORE)


def test_the_sentence_says_what_and_why() -> None:
    told = in_time(wanted(pictures(), judged=True), 600, CORE).chosen
    assert told.startswith("Chosen for the time: 3 networks of width 32, trained on ")
    assert " updates of the set (" in told
    assert "epochs for each of k = 1" in told
    assert told.endswith("; networks of width 64 would be trained too little")
