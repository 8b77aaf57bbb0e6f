"""Whether a subset is worth its bytes: its measured accuracy, compared with smaller subsets and real images. No torch.

**The rule.** One accuracy is above another if the difference of their means is positive and at least twice its standard
error, sqrt(std²/n + std'²/n') over n and n' repeats. With a single repeat the spread is unknown, and any positive
difference counts. A subset is

- `worse than a smaller subset` if a smaller one's accuracy is above its own;
- else `not better than random real images of the same count` unless it is above that baseline;
- else `not better than real images of the same bytes` unless it is above that baseline;
- else `better`.

Baselines that were not measured are skipped. Without any baseline, a subset that is no worse than a smaller one has no
verdict. Only trainings with the same network and epochs are compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, get_args

from mdc_core.delivery.manifest import Accuracy, parse_accuracy

Verdict = Literal[
    "better",
    "not better than random real images of the same count",
    "not better than real images of the same bytes",
    "worse than a smaller subset",
]
_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
BETTER, NOT_ABOVE_RANDOM, NOT_ABOVE_SHRUNK, WORSE_THAN_SMALLER = _VERDICTS
STANDARD_ERRORS = 2
"""A difference of fewer standard errors may be chance."""


def verdicts(rows: Sequence[Accuracy]) -> list[Verdict | None]:
    """The verdict on each row's subset by the rule above; None if there is nothing to compare it with."""
    worse: set[int] = set()
    alike: dict[tuple[str, int], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault((row.network, row.epochs), []).append(index)
    for indices in alike.values():
        worse |= _worse(rows, sorted(indices, key=lambda index: rows[index].k))
    return [WORSE_THAN_SMALLER if index in worse else _by_baselines(row) for index, row in enumerate(rows)]


def judged(rows: Sequence[Mapping[str, Any]], ipc: int) -> list[dict[str, Any]]:
    """A manifest's accuracy rows for a set with `ipc` ranks, each with its `verdict`. Raises like `parse_accuracy`."""
    by_row = verdicts(parse_accuracy(rows, ipc))
    return [{**row, "verdict": verdict} for row, verdict in zip(rows, by_row, strict=True)]


def advice(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Which k of `judged` rows are not worth their bytes, and what to do about it; None if all are.

    If there are trainings of several lengths, the longest count.
    """
    rows = longest(rows)
    groups = [
        (verdict, [row["k"] for row in rows if row.get("verdict") == verdict])
        for verdict in (WORSE_THAN_SMALLER, NOT_ABOVE_RANDOM, NOT_ABOVE_SHRUNK)
    ]
    texts = [f"k = {sizes_text(sizes)} ({verdict})" for verdict, sizes in groups if sizes]
    if not texts:
        return None
    return (
        f"Not worth the bytes: {'; '.join(texts)}. Use another k, or condense again for longer, with every size in the "
        "loss (method 'feature', or subset_loss 'all'), or with another factor."
    )


def longest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The accuracy rows of the longest trainings."""
    most = max((row["epochs"] for row in rows), default=0)
    return [row for row in rows if row["epochs"] == most]


def sizes_text(sizes: Collection[int]) -> str:
    """Sizes as text: `1, 3-5`."""
    runs: list[list[int]] = []
    for k in sorted(set(sizes)):
        if runs and k == runs[-1][-1] + 1:
            runs[-1].append(k)
        else:
            runs.append([k])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _worse(rows: Sequence[Accuracy], by_size: Sequence[int]) -> set[int]:
    """Indices of the comparable rows that are below a row of smaller k; `by_size` holds the indices by rising k.

    Only smaller rows that no other dominates (more accurate and at least as certain) are compared, so a thousand sizes
    take milliseconds.
    """
    worse: set[int] = set()
    best: list[Accuracy] = []
    for _, group in groupby(by_size, key=lambda index: rows[index].k):
        same = list(group)
        for index in same:
            row = rows[index]
            ours = row.mdc_mean, row.mdc_std
            if any(_is_above((one.mdc_mean, one.mdc_std), one.repeats, ours, row.repeats) for one in best):
                worse.add(index)
        for index in same:
            row = rows[index]
            if not any(_dominates(one, row) for one in best):
                best = [one for one in best if not _dominates(row, one)]
                best.append(row)
    return worse


def _dominates(one: Accuracy, other: Accuracy) -> bool:
    """Whether `one` is above everything that the `other` is above."""
    spreads = (row.mdc_std**2 / row.repeats for row in (one, other))
    return one.mdc_mean >= other.mdc_mean and next(spreads) <= next(spreads)


def _by_baselines(row: Accuracy) -> Verdict | None:
    ours = row.mdc_mean, row.mdc_std
    baselines = list(_baselines(row))
    for verdict, baseline in baselines:
        if not _is_above(ours, row.repeats, baseline, row.repeats):
            return verdict
    return BETTER if baselines else None


def _baselines(row: Accuracy) -> Iterator[tuple[Verdict, tuple[float, float]]]:
    """For each measured baseline: the verdict on a subset that is not above it, and its mean and deviation."""
    if row.random_mean is not None:
        yield NOT_ABOVE_RANDOM, (row.random_mean, row.random_std or 0.0)
    if row.shrunk_mean is not None:
        yield NOT_ABOVE_SHRUNK, (row.shrunk_mean, row.shrunk_std or 0.0)


def _is_above(one: tuple[float, float], repeats: int, other: tuple[float, float], other_repeats: int) -> bool:
    """Whether the mean of `one` (mean, std) is above that of the `other` by more than chance."""
    difference = one[0] - other[0]
    error = math.sqrt(one[1] ** 2 / repeats + other[1] ** 2 / other_repeats)
    return difference > 0 and difference >= STANDARD_ERRORS * error
