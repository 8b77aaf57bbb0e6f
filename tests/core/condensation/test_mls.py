"""Selection and freezing of the most learnable subset."""

from __future__ import annotations

import pytest

from mdc_core.condensation import mls
from mdc_core.errors import ConfigError
from tests.core.toys import toy_config


def test_worked_example_selects_one() -> None:
    """Table 8 of the paper."""
    assert mls.select([8.32, 7.68, 7.16, 7.04, 7.64, 7.56, 7.30, 7.38, 7.54]) == 1


def test_ties_go_to_the_smallest() -> None:
    assert mls.select([1.0, 3.0, 3.0, 2.0]) == 2


def test_the_first_measurement_is_only_remembered() -> None:
    state = mls.start(toy_config(), classes=2)
    after = mls.advance(state, [[3.0, 9.0]])
    assert after.tracks[0].selected == 1
    assert after.tracks[0].previous == (3.0, 9.0)


def test_rising_distances_count_like_falling_ones() -> None:
    state = mls.advance(mls.start(toy_config(), 2), [[5.0, 5.0, 5.0]])
    assert mls.advance(state, [[4.0, 5.0, 7.0]]).tracks[0].selected == 3
    assert mls.advance(state, [[2.0, 5.0, 7.0]]).tracks[0].selected == 1


def test_advance_is_pure() -> None:
    state = mls.advance(mls.start(toy_config(), 2), [[5.0, 5.0]])
    mls.advance(state, [[1.0, 5.0]])
    assert state.tracks[0].selections == (1,)


@pytest.mark.parametrize(
    ("rule", "trace"), [("predecessor", [0, 1, 0, 2]), ("cumulative", [0, 1, 1, 3]), ("none", [0, 0, 0, 0])]
)
def test_freeze_traces(rule: str, trace: list[int]) -> None:
    selections = [1, 3, 2, 4]
    assert [mls.frozen_prefix(selections[: i + 1], rule) for i in range(4)] == trace


def test_an_equal_selection_changes_nothing() -> None:
    assert mls.frozen_prefix([1, 3, 3], "predecessor") == 1
    assert mls.frozen_prefix([1, 3, 3], "cumulative") == 1


def test_class_wise_tracks_are_independent() -> None:
    state = mls.start(toy_config(class_wise=True), classes=2)
    state = mls.advance(state, [[1.0, 1.0], [1.0, 1.0]])
    state = mls.advance(state, [[0.0, 1.0], [1.0, 0.0]])
    assert [state.of_class(label).selected for label in (0, 1)] == [1, 2]


def test_measured_in_the_first_loop_and_every_period() -> None:
    config = toy_config(mls_period=3, outer_loops=7)
    assert [t for t in range(1, 8) if mls.is_measured(config, t)] == [1, 3, 6]
    assert not mls.is_measured(toy_config(subset_loss="none"), 1)
    assert not mls.is_measured(toy_config(ipc=1), 1)


def test_misfitting_distances_are_refused() -> None:
    state = mls.advance(mls.start(toy_config(), 2), [[1.0, 2.0]])
    with pytest.raises(ConfigError, match="3 subset distances, but 2"):
        mls.advance(state, [[1.0, 2.0, 3.0]])
    with pytest.raises(ConfigError, match="2 rows of distances for 1"):
        mls.advance(state, [[1.0, 2.0], [1.0, 2.0]])
