"""Verdicts: every one from made-up accuracies, and that noise does not flip them."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdc_core.delivery.manifest import Accuracy
from mdc_core.delivery.verdict import Verdict, advice, judged, sizes_text, verdicts
from mdc_core.errors import FormatError

RANDOM = "not better than random real images of the same count"
SHRUNK = "not better than real images of the same bytes"
SMALLER = "worse than a smaller subset"


def row(
    k: int,
    mean: float,
    random: float | None = None,
    shrunk: float | None = None,
    *,
    std: float = 0.0,
    repeats: int = 1,
    **changes: Any,
) -> Accuracy:
    given: dict[str, Any] = {
        "network": "net",
        "epochs": 10,
        "k": k,
        "mdc_mean": mean,
        "mdc_std": std,
        "random_mean": random,
        "random_std": None if random is None else std,
        "shrunk_mean": shrunk,
        "shrunk_std": None if shrunk is None else std,
        "repeats": repeats,
    }
    return Accuracy(**{**given, **changes})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (row(2, 0.7, 0.6, 0.65), "better"),
        (row(2, 0.7, 0.6), "better"),
        (row(2, 0.7, None, 0.6), "better"),
        (row(2, 0.7, 0.7, 0.6), RANDOM),
        (row(2, 0.7, 0.8, 0.9), RANDOM),
        (row(2, 0.7, 0.6, 0.7), SHRUNK),
        (row(2, 0.7, None, 0.8), SHRUNK),
        (row(2, 0.7), None),
        (row(2, 0.4, 0.3, 0.3), SMALLER),
        (row(2, 0.4, 0.6), SMALLER),
        (row(2, 0.4), SMALLER),
        (row(2, 0.4, 0.3, epochs=20), "better"),
        (row(2, 0.4, 0.3, network="other"), "better"),
    ],
)
def test_every_verdict_beside_a_smaller_subset_of_half(found: Accuracy, expected: Verdict | None) -> None:
    """The order of the rows does not matter."""
    assert verdicts([row(1, 0.5), found]) == [None, expected]
    assert verdicts([found, row(1, 0.5)]) == [expected, None]


def test_any_smaller_subset_counts_and_a_larger_one_does_not() -> None:
    rows = [row(1, 0.6, 0.1), row(2, 0.5, 0.1), row(3, 0.55, 0.1), row(4, 0.7, 0.1)]
    assert verdicts(rows) == ["better", SMALLER, SMALLER, "better"]


def test_differences_within_two_standard_errors_are_no_differences() -> None:
    """std 3 % over 9 repeats: the standard error of a difference is 1.41 %, and two of them 2.83 %."""
    noisy: dict[str, Any] = {"std": 0.03, "repeats": 9}
    first = row(1, 0.5, 0.3, **noisy)
    assert verdicts([first, row(2, 0.473, 0.3, **noisy)])[1] == "better"
    assert verdicts([first, row(2, 0.471, 0.3, **noisy)])[1] == SMALLER
    assert verdicts([row(1, 0.5, 0.471, **noisy)]) == ["better"]
    assert verdicts([row(1, 0.5, 0.473, **noisy)]) == [RANDOM]
    assert verdicts([row(1, 0.5, 0.3, 0.471, **noisy)]) == ["better"]
    assert verdicts([row(1, 0.5, 0.3, 0.473, **noisy)]) == [SHRUNK]


def test_the_readmes_digits() -> None:
    """Two networks each: where random real images are better the table says so, and one noisy dip is no fall."""
    table = [
        (1, 0.887, 0.010, 0.735, 0.012),
        (2, 0.894, 0.016, 0.831, 0.010),
        (3, 0.879, 0.030, 0.907, 0.006),
        (5, 0.889, 0.008, 0.914, 0.000),
        (10, 0.972, 0.008, 0.948, 0.010),
    ]
    rows = [Accuracy("net", 10, k, mean, std, random, spread, 2) for k, mean, std, random, spread in table]
    assert verdicts(rows) == ["better", "better", RANDOM, RANDOM, "better"]


accuracies = st.floats(0, 1).map(lambda value: round(value, 2))


@given(st.lists(st.tuples(accuracies, accuracies, accuracies), min_size=1, max_size=6), st.integers(1, 4))
def test_with_a_single_repeat_the_means_decide(rows: list[tuple[float, float, float]], first: int) -> None:
    """Against the rule written out for plain numbers."""
    found = verdicts([row(first + i, *means) for i, means in enumerate(rows)])
    for i, (verdict, (mean, random, shrunk)) in enumerate(zip(found, rows, strict=True)):
        if any(smaller > mean for smaller, _, _ in rows[:i]):
            assert verdict == SMALLER
        elif mean <= random:
            assert verdict == RANDOM
        else:
            assert verdict == (SHRUNK if mean <= shrunk else "better")


@given(st.lists(accuracies, min_size=2, max_size=5), st.lists(accuracies, min_size=2, max_size=5))
def test_the_spread_is_that_of_both_means(ours: list[float], theirs: list[float]) -> None:
    """Two subsets that differ in their repeats, against the standard errors of their means."""
    rows = [
        row(k, statistics.fmean(values), std=statistics.stdev(values), repeats=len(values))
        for k, values in enumerate((ours, theirs), 1)
    ]
    gap = statistics.fmean(ours) - statistics.fmean(theirs)
    errors = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    least = 2 * math.sqrt(sum(errors))
    if abs(gap - least) > 1e-9 and abs(gap) > 1e-9:
        assert verdicts(rows)[1] == (SMALLER if gap > max(0, least) else None)


def test_rows_of_a_manifest_are_judged_and_told_in_words() -> None:
    table = [
        (1, 0.5, 0.4, 0.45),
        (2, 0.45, 0.4, 0.4),
        (3, 0.6, 0.6, 0.5),
        (4, 0.6, 0.61, 0.5),
        (6, 0.7, 0.6, 0.7),
    ]
    rows = [
        {
            "network": "net",
            "epochs": 1,
            "k": k,
            "mdc_mean": mean,
            "mdc_std": 0.0,
            "random_mean": random,
            "random_std": 0.0,
            "shrunk_mean": shrunk,
            "shrunk_std": 0.0,
            "repeats": 1,
        }
        for k, mean, random, shrunk in table
    ]
    found = judged(rows, 6)
    assert [entry.pop("verdict") for entry in judged(rows, 6)] == ["better", SMALLER, RANDOM, RANDOM, SHRUNK]
    assert [{name: entry[name] for name in rows[0]} for entry in found] == rows
    told = advice(found)
    assert told is not None
    assert f"k = 2 ({SMALLER}); k = 3-4 ({RANDOM}); k = 6 ({SHRUNK})" in told
    assert "condense again for longer, with every size in the loss" in told
    assert advice(found[:1]) is None
    assert advice(judged([{**rows[1], "random_mean": None, "shrunk_mean": None}], 6)) is None
    with pytest.raises(FormatError, match=r"accuracy\[0\]\.k is 7"):
        judged([{**rows[0], "k": 7}], 6)


def test_sizes_are_written_as_people_do() -> None:
    assert sizes_text([5, 1, 3, 4, 3, 9, 10]) == "1, 3-5, 9-10"


figures = st.tuples(
    st.sampled_from([1, 1, 2, 3, 5, 8, 13]),
    st.sampled_from([0.5, 0.51, 0.52, 0.6, 0.7]) | st.floats(0, 1),
    st.sampled_from([0.0, 0.01, 0.05]) | st.floats(0, 0.2),
    st.integers(1, 4),
    st.sampled_from([10, 20]),
)


@settings(max_examples=500)
@given(st.lists(figures, max_size=12))
def test_a_size_is_compared_with_every_smaller_one(found: list[tuple[int, float, float, int, int]]) -> None:
    rows = [
        Accuracy("net", epochs, k, mean, std, None, None, repeats) for k, mean, std, repeats, epochs in found
    ]

    def is_below(row: Accuracy, other: Accuracy) -> bool:
        error = math.sqrt(other.mdc_std**2 / other.repeats + row.mdc_std**2 / row.repeats)
        difference = other.mdc_mean - row.mdc_mean
        return other.epochs == row.epochs and other.k < row.k and difference > 0 and difference >= 2 * error

    expected = [SMALLER if any(is_below(row, other) for other in rows) else None for row in rows]
    assert verdicts(rows) == expected
