"""Budget to k: which subset a device can afford. Pure functions, the same on server and device. No torch.

With n = k·C·f² tiles, P parameters, A kept activation bytes and F training FLOP per image, s optimiser
states, B bytes of a rank and H bytes of a header:

    bytes(k)  = H + kB, of which a device that has k' < k fetches (k - k')B
    memory(k) = 4P(2 + s) + 2.25·A·min(batch, n) + 8·n·ch·side² + kB + 4 MB
    time(k)   = epochs·(n·(F + 140·A) + ⌈n / batch⌉·140·4P) / flops + 8·(bytes to fetch) / bandwidth
    energy(k) = watts · time(k)

**The rule.** All four grow with k, so the sizes that meet every limit are 1..K. Among them the plan takes the largest
whose measured accuracy is within one standard error of the best one (std / sqrt(repeats) of that best): a few networks
tell no more than that. One that is measured to be worse than a smaller size (see `verdict`) is not taken. On a
metered connection it takes the best measured accuracy itself; of equally good ones the one with the fewest bytes to
fetch, then the largest. A size that was not measured counts as the next smaller one that was; with nothing measured, K
itself is taken. With `min_accuracy` the plan takes the least k that reaches it. A caller who names a size gets the
largest of 1..K up to that one, whatever its accuracy.

Where time or energy limits the training and accuracies of shorter trainings were measured too, the plan chooses between
pairs of k and epochs in the same way; of pairs of one k it takes the more accurate one, then the shorter training.

A larger budget only admits more candidates, and so the best of them never gets worse. So with more budget (unless a
size was named) the measured accuracy never falls by more than that standard error; nor does k fall, for the same epochs
or a named size.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

from mdc_core.delivery import rankmajor
from mdc_core.delivery.cost import FLOAT_BYTES, LARGEST, MOST_STEPS, Cost, convnet_cost
from mdc_core.delivery.manifest import Accuracy, Manifest
from mdc_core.delivery.verdict import (
    WORSE_THAN_SMALLER,
    Verdict,
    sizes_text,
    verdicts,
)
from mdc_core.errors import BudgetError, ConfigError, shown

__all__ = ["Budget", "Cost", "Plan", "convnet_cost", "plan"]

ACTIVATION_COPIES = 2.25
"""Kept activations, as much again for the gradients that flow through them, and what augmenting and the libraries'
scratch space take besides; measured by benchmarks/cost_model.py."""
OPERATIONS_PER_BYTE = 140
"""Operations of a matrix product in whose time norms, activations, pooling and augmentation pass through one kept
byte of an image, or the optimiser through one of the weights, in every step; measured by benchmarks/cost_model.py.
F counts convolutions and matrix products alone."""
IMAGE_COPIES = 2
"""The decoded images, and once more normalised."""
LIBRARY_BYTES = 4_000_000
"""What the libraries, once loaded, take for any training: code that is read from disk when it is first run, kernels
that are written for the shapes met, and pieces of memory that the allocator keeps; measured by
benchmarks/cost_model.py."""
DEFAULT_BATCH = 64
SMALLEST = 1e-3
"""Least speed or power: no device is slower, and what is divided by it stays finite."""


@dataclass(frozen=True)
class Budget:
    """What a device can spend; a field left out is no limit. `ConfigError` names an impossible value.

    `seconds` needs `flops` or `bandwidth_bps`, and `joules` needs `watts` besides; a rate left out counts as
    infinitely fast.
    """

    memory_bytes: int | None = None
    """Memory for training: weights, gradients, optimiser, activations and the set itself."""
    storage_bytes: int | None = None
    """Room for the file of the subset."""
    transfer_bytes: int | None = None
    """Bytes that may be fetched now."""
    bandwidth_bps: float | None = None
    """Bits per second of the connection."""
    metered: bool = False
    """The connection is paid by the byte: fetch none that is not measured to raise the accuracy."""
    seconds: float | None = None
    """Deadline for fetching and training."""
    flops: float | None = None
    """Floating point operations per second that the device sustains in a matrix product."""
    joules: float | None = None
    """Energy for fetching and training."""
    watts: float | None = None
    """Power that the device draws meanwhile."""
    min_accuracy: float | None = None
    """Take the least k that is measured to reach this test accuracy, a fraction in [0, 1]."""
    have_k: int = 0
    """Ranks that the device already has."""
    network: str | None = None
    """Name of the network to train, as in the manifest; left out: the first one measured."""
    epochs: int | None = None
    """Epochs of the training; left out: those of the manifest, of which there may be several to choose from."""
    batch_size: int | None = None
    """Images per step; left out: that of the manifest's recipe."""

    def __post_init__(self) -> None:
        for name, kind in _NUMBERS.items():
            _check_number(name, getattr(self, name), kind)
        if self.have_k is None:
            raise ConfigError("have_k is None: give the number of ranks that the device has, 0 for none")
        if not isinstance(self.metered, bool):
            raise ConfigError(f"metered is {shown(self.metered)}: give true or false")
        if self.network is not None and (not isinstance(self.network, str) or not self.network):
            raise ConfigError(f"network is {shown(self.network)}: give the name of a network in the manifest")
        timed = self.flops is not None or self.bandwidth_bps is not None
        if self.seconds is not None and not timed:
            raise ConfigError(
                "seconds is a limit on fetching and training: give flops or bandwidth_bps with it"
            )
        if self.joules is not None and (self.watts is None or not timed):
            raise ConfigError("joules is watts times seconds: give watts, and flops or bandwidth_bps with it")

    @classmethod
    def from_mapping(cls, values: Mapping[str, str | int | float | bool | None]) -> Budget:
        """The budget that query fields or JSON fields describe; None is as good as left out.

        `ConfigError` names an unknown field, or one that is wrong.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"a budget has no field {shown(name)}: choose from {', '.join(known)}")
        given = {name: _parsed(name, value) for name, value in values.items() if value is not None}
        return cls(**given)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, str | float | bool]:
        """The fields that were given, as `from_mapping` takes them."""
        return {key: value for key, value in asdict(self).items() if value not in (None, False)}


class _Number(NamedTuple):
    """What a field may be."""

    is_whole: bool
    least: float
    most: float


_RATE = _Number(False, SMALLEST, LARGEST)
_AMOUNT = _Number(False, 0, LARGEST)
_BYTES = _Number(True, 0, LARGEST)
_COUNT = _Number(True, 1, MOST_STEPS)
_NUMBERS = {
    "memory_bytes": _BYTES,
    "storage_bytes": _BYTES,
    "transfer_bytes": _BYTES,
    "bandwidth_bps": _RATE,
    "seconds": _AMOUNT,
    "flops": _RATE,
    "joules": _AMOUNT,
    "watts": _RATE,
    "min_accuracy": _Number(False, 0, 1),
    "have_k": _Number(True, 0, rankmajor.LARGEST),
    "epochs": _COUNT,
    "batch_size": _COUNT,
}


def budget_schema() -> dict[str, dict[str, object]]:
    """JSON Schema of each field of a budget."""
    schemas: dict[str, dict[str, object]] = {
        name: {
            "type": "integer" if kind.is_whole else "number",
            "minimum": kind.least,
            "maximum": kind.most,
        }
        for name, kind in _NUMBERS.items()
    }
    schemas |= {"metered": {"type": "boolean"}, "network": {"type": "string"}}
    return {field.name: schemas[field.name] for field in fields(Budget)}


@dataclass(frozen=True)
class Plan:
    """The subset for a budget, and what it will take. None: the budget and the manifest do not tell."""

    k: int
    """Size of the subset."""
    have_k: int
    """Ranks that the device already has."""
    delta_bytes: int
    """Bytes to fetch; 0 when the device has as many ranks or more."""
    byte_range: tuple[int, int]
    """Where these bytes are in the file of subset k, half open."""
    total_bytes: int
    """Bytes of the file."""
    seconds: float | None
    """Expected time to fetch and train."""
    joules: float | None
    """Expected energy for it."""
    memory_bytes: int | None
    """Expected memory of the training."""
    accuracy: float | None
    """Measured mean test accuracy at this k, or at the next smaller k that was measured."""
    limited_by: str | None
    """Why not k + 1: the budget field that excludes it; `accuracy` when it would fit but is no better;
    `min_accuracy` when it would fit but is not needed. None: the set, or the k asked for, ends here."""
    epochs: int
    """Epochs of the training that all of this is about."""
    verdict: Verdict | None = None
    """Whether the size that `accuracy` is of is worth its bytes."""
    reason: str | None = None
    """In words, why the larger sizes that fit were passed over; None: none was, or `min_accuracy` is the reason."""

    def to_dict(self) -> dict[str, object]:
        """As JSON: field by field; `byte_range` becomes a list."""
        return {**asdict(self), "byte_range": list(self.byte_range)}


def plan(manifest: Manifest, budget: Budget, at_most: int | None = None) -> Plan:
    """The subset for this budget by the rule above; `at_most` is the size that the caller named.

    Raises `BudgetError` with the limiting field and the least that would do when nothing fits, and
    `ConfigError` when the budget speaks of a network, a k or a `have_k` that the manifest does not have.
    """
    ipc = manifest.info.ipc
    top = ipc if at_most is None else rankmajor.check_size(manifest.info, at_most)
    if budget.have_k > ipc:
        raise ConfigError(f"have_k is {budget.have_k}, but the set has {ipc} ranks: give 0..{ipc}")
    trainings = _trainings(manifest, budget)
    if budget.min_accuracy is None:
        return _most_accurate(manifest, budget, trainings, top, is_named=at_most is not None)
    return _least_that_reaches(manifest, budget, trainings, top, budget.min_accuracy)


class _Option(NamedTuple):
    """A size that fits with a training."""

    training: _Training
    largest: int
    """The largest size that fits with it."""
    k: int
    measured: _Measured


def _most_accurate(
    manifest: Manifest, budget: Budget, trainings: list[_Training], top: int, *, is_named: bool
) -> Plan:
    """What the rule takes of 1..`top`; the largest that fits where a size is named."""
    options = [
        _Option(training, largest, _wanted(stretch, budget, is_named=is_named), stretch.measured)
        for training in trainings
        if (largest := _largest(manifest, budget, training, top))
        for stretch in _stretches(training, 1, largest)
    ]
    if not options:
        _refuse(_candidate(manifest, budget, trainings[0], 1), budget)
    if budget.metered and not is_named:
        chosen = max(options, key=lambda one: (one.measured.accuracy, min(budget.have_k - one.k, 0), one.k))
    else:
        good = options if is_named else _as_good_as_the_best(options)
        chosen = max(
            good, key=lambda one: (one.k, one.measured.accuracy)
        )  # of equal ones the shortest training
    found = _candidate(manifest, budget, chosen.training, chosen.k)
    passed_over = _stretches(chosen.training, chosen.k + 1, chosen.largest)
    return _with_words(_with_limit(manifest, found, chosen.training, top, budget), passed_over, budget)


def _wanted(stretch: _Stretch, budget: Budget, *, is_named: bool) -> int:
    """The size of a stretch to take: the largest, or on a metered connection what is there already."""
    if is_named or not budget.metered:
        return stretch.last
    return min(stretch.last, max(stretch.first, budget.have_k))


def _as_good_as_the_best(options: list[_Option]) -> list[_Option]:
    """Those within one standard error of the best, and not measured to be worse than a smaller size."""
    best = max(options, key=lambda one: (one.measured.accuracy, one.measured.error)).measured
    least = best.accuracy - best.error
    return [
        one
        for one in options
        if one.measured.accuracy >= least and one.measured.verdict != WORSE_THAN_SMALLER
    ]


def _least_that_reaches(
    manifest: Manifest, budget: Budget, trainings: list[_Training], top: int, accuracy: float
) -> Plan:
    """The least k that is measured to reach the accuracy, and fits with one of the trainings."""
    reaching = [
        (stretch.first, index)
        for index, training in enumerate(trainings)
        for stretch in _stretches(training, 1, top)
        if stretch.measured.accuracy >= accuracy
    ]
    if not reaching:
        measured = [it.accuracy for training in trainings for k, it in training.measured.items() if k <= top]
        best = max(measured, default=0.0)
        raise BudgetError(
            f"min_accuracy is {accuracy}, but of subsets 1..{top} of {manifest.name!r} "
            f"none is measured above {best:.4f}: lower it",
            "min_accuracy",
            best,
        )
    for k, index in sorted(reaching):
        chosen = _candidate(manifest, budget, trainings[index], k)
        if next(_excesses(chosen, budget), None) is None:
            return _with_limit(manifest, chosen, trainings[index], top, budget)
    k, index = min(reaching)
    _refuse(_candidate(manifest, budget, trainings[index], k), budget)
    raise AssertionError("it did not fit")


def _largest(manifest: Manifest, budget: Budget, training: _Training, top: int) -> int:
    """The largest of 1..`top` that meets every limit, 0 if none does: all that is limited grows with k."""
    return bisect_left(
        range(1, top + 1),
        True,
        key=lambda k: next(_excesses(_candidate(manifest, budget, training, k), budget), None) is not None,
    )


class _Measured(NamedTuple):
    """What a size counts as."""

    accuracy: float
    """Mean test accuracy."""
    error: float
    """Its standard error; 0 where a single repeat tells nothing of it."""
    verdict: Verdict | None


_NOTHING = _Measured(-1.0, 0.0, None)
"""A size that was not measured, nor any smaller one."""


class _Stretch(NamedTuple):
    """Sizes that count with the same measured accuracy."""

    first: int
    last: int
    measured: _Measured


def _stretches(training: _Training, first: int, last: int) -> Iterator[_Stretch]:
    """What `first`..`last` consists of, in order."""
    sizes = sorted(training.measured)
    begins = [first, *(size for size in sizes if first < size <= last)]
    for begin, following in zip(begins, [*begins[1:], last + 1], strict=True):
        if begin < following:
            at = bisect_right(sizes, begin)
            yield _Stretch(begin, following - 1, training.measured[sizes[at - 1]] if at else _NOTHING)


@dataclass(frozen=True)
class _Training:
    """What the device may do with a subset."""

    cost: Cost | None
    epochs: int
    batch_size: int
    measured: Mapping[int, _Measured]
    """By k, under the epochs that come nearest from below."""


def _trainings(manifest: Manifest, budget: Budget) -> list[_Training]:
    """Those to choose from, the shortest first: one, unless the time of a training is limited."""
    names = list(dict.fromkeys([row.network for row in manifest.accuracy] + list(manifest.cost)))
    if budget.network is not None and budget.network not in names:
        raise ConfigError(
            f"network is {shown(budget.network)}, but the manifest of {manifest.name!r} knows "
            f"{', '.join(names) or 'none'}"
        )
    network = budget.network or (names[0] if names else None)
    cost = manifest.cost.get(network) if network is not None else None
    limited = (budget.memory_bytes, budget.flops)
    if cost is None and any(limit is not None for limit in limited):
        raise ConfigError(
            f"the manifest of {manifest.name!r} states no cost of training {network or 'any network'}: "
            "leave memory_bytes and flops out of the budget, or name another network"
        )
    rows = [row for row in manifest.accuracy if row.network == network]
    batch = budget.batch_size or _recipe(manifest, "batch_size", DEFAULT_BATCH)
    measured = sorted({row.epochs for row in rows}) or [_recipe(manifest, "epochs", 1)]
    lengths = measured[-1:]
    if budget.epochs is not None:
        lengths = [budget.epochs]
    elif budget.flops is not None and (budget.seconds is not None or budget.joules is not None):
        lengths = measured
    return [_Training(cost, epochs, batch, _measured(rows, epochs)) for epochs in lengths]


def _measured(rows: list[Accuracy], epochs: int) -> dict[int, _Measured]:
    """By k, the figures of the longest measured training that does not exceed `epochs`; empty if all do."""
    nearest = max((row.epochs for row in rows if row.epochs <= epochs), default=None)
    alike = [row for row in rows if row.epochs == nearest]
    return {
        row.k: _Measured(row.mdc_mean, row.mdc_std / math.sqrt(row.repeats), verdict)
        for row, verdict in zip(alike, verdicts(alike), strict=True)
    }


def _candidate(manifest: Manifest, budget: Budget, training: _Training, k: int) -> Plan:
    """What subset k would take, whether or not it fits."""
    info = manifest.info
    end = rankmajor.subset_size(info, k)
    # A device that has ranks writes header(k) itself: it is a function of the manifest.
    start = 0 if budget.have_k == 0 else min(rankmajor.subset_size(info, budget.have_k), end)
    seconds = _seconds(budget, training, _images(manifest, k), end - start)
    measured = next(_stretches(training, k, k)).measured
    return Plan(
        k=k,
        have_k=budget.have_k,
        delta_bytes=end - start,
        byte_range=(start, end),
        total_bytes=end,
        seconds=seconds,
        joules=None if seconds is None or budget.watts is None else budget.watts * seconds,
        memory_bytes=_memory(training, _images(manifest, k), info),
        accuracy=None if measured is _NOTHING else measured.accuracy,
        limited_by=None,
        epochs=training.epochs,
        verdict=measured.verdict,
    )


def _images(manifest: Manifest, k: int) -> int:
    """n = k·C·f²: training images that subset k decodes to."""
    return k * len(manifest.info.classes) * manifest.info.factor**2


def _memory(training: _Training, images: int, info: rankmajor.SetInfo) -> int | None:
    if (cost := training.cost) is None:
        return None
    weights = FLOAT_BYTES * cost.parameters * (2 + cost.optimiser_states)
    activations = ACTIVATION_COPIES * cost.activation_bytes * min(training.batch_size, images)
    decoded = IMAGE_COPIES * FLOAT_BYTES * images * info.channels * info.image_size**2
    stored = images * info.channels * info.tile_side**2
    return math.ceil(weights + activations) + decoded + stored + LIBRARY_BYTES


def _seconds(budget: Budget, training: _Training, images: int, fetched: int) -> float | None:
    if budget.flops is None and budget.bandwidth_bps is None:
        return None
    seconds = 0.0
    if budget.flops is not None and training.cost is not None:
        cost, steps = training.cost, math.ceil(images / training.batch_size)
        moved = images * cost.activation_bytes + steps * FLOAT_BYTES * cost.parameters
        work = images * cost.flops_per_image + OPERATIONS_PER_BYTE * moved
        seconds += training.epochs * work / budget.flops
    if budget.bandwidth_bps is not None:
        seconds += 8 * fetched / budget.bandwidth_bps
    return seconds


def _excesses(candidate: Plan, budget: Budget) -> Iterator[tuple[str, float, float]]:
    """Field, limit and need of every limit that the candidate breaks."""
    needs: tuple[tuple[str, float | None, float | None], ...] = (
        ("storage_bytes", budget.storage_bytes, candidate.total_bytes),
        ("transfer_bytes", budget.transfer_bytes, candidate.delta_bytes),
        ("memory_bytes", budget.memory_bytes, candidate.memory_bytes),
        ("seconds", budget.seconds, candidate.seconds),
        ("joules", budget.joules, candidate.joules),
    )
    for name, limit, need in needs:
        if limit is not None and need is not None and need > limit:
            yield name, limit, need


def _with_limit(manifest: Manifest, chosen: Plan, training: _Training, top: int, budget: Budget) -> Plan:
    """The plan, with what keeps it from being one larger."""
    if chosen.k == top:
        return chosen
    excess = next(_excesses(_candidate(manifest, budget, training, chosen.k + 1), budget), None)
    if excess is not None:
        return replace(chosen, limited_by=excess[0])
    if budget.min_accuracy is not None:
        return replace(chosen, limited_by="min_accuracy")
    return replace(chosen, limited_by="accuracy")


def _with_words(chosen: Plan, passed_over: Iterable[_Stretch], budget: Budget) -> Plan:
    """The plan, with the reason why none of the larger sizes that fit was taken."""
    otherwise = "not measured to be more accurate" if budget.metered else "measured to be less accurate"
    groups: dict[str, list[int]] = {}
    for larger in passed_over:
        is_worse = larger.measured.verdict == WORSE_THAN_SMALLER
        reason = WORSE_THAN_SMALLER if is_worse else otherwise
        groups.setdefault(reason, []).extend(range(larger.first, larger.last + 1))
    told = [f"k = {sizes_text(sizes)} would fit, but is {reason}" for reason, sizes in groups.items()]
    return replace(chosen, reason="; ".join(told) or None)


def _refuse(least: Plan, budget: Budget) -> None:
    """Raise the `BudgetError` that names every limit which even the least acceptable subset breaks."""
    excesses = list(_excesses(least, budget))
    texts = [f"{name} is {limit:.15g}, but it needs {need:.15g}" for name, limit, need in excesses]
    raise BudgetError(
        f"the budget is too small for subset {least.k}, the least that would do: {'; '.join(texts)}",
        excesses[0][0],
        excesses[0][2],
    )


def _recipe(manifest: Manifest, key: str, default: int) -> int:
    return int(manifest.recipe.get(key, default))  # whole and bounded: the manifest is read so


def _check_number(name: str, value: object, kind: _Number) -> None:
    """Raise `ConfigError` unless `value` is None or a number of this kind and range."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if kind.is_whole else int | float):
        raise ConfigError(f"{name} is {shown(value)}: give a {'whole ' if kind.is_whole else ''}number")
    assert isinstance(value, int | float)
    if not kind.least <= value <= kind.most:  # what is not a number fails the comparison too
        raise ConfigError(f"{name} is {shown(value)}: give a number from {kind.least:g} to {kind.most:g}")


def _parsed(name: str, value: str | float | bool) -> object:
    """A field's value from its text; values of the right type pass, and the budget itself checks ranges."""
    if name == "network":
        return value
    if name == "metered":
        return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower(), value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{name} is {shown(value)}: give a number") from None
    if isinstance(value, float) and _NUMBERS[name].is_whole and value.is_integer() and abs(value) <= LARGEST:
        return int(value)
    return value
