"""Choose the subset that fits a device's budget. Pure functions, the same on server and device. No torch.

Notation: n = k·C·f² tiles; P parameters; A kept activation bytes and F training FLOP per image; s optimiser states;
B bytes per rank; H bytes per header. Subset k costs

    bytes(k)  = H + kB; a device that has k' < k ranks fetches (k - k')B
    memory(k) = 4P(2 + s) + 2.25·A·min(batch, n) + 8·n·ch·side² + kB + 4 MB
    time(k)   = epochs·(n·(F + 140·A) + ⌈n / batch⌉·140·4P) / flops + 8·(bytes to fetch) / bandwidth
    energy(k) = watts · time(k)

**The rule.** All four grow with k, so the sizes that meet every limit are 1..K. The plan takes the largest of them
whose measured accuracy is within one standard error (std / sqrt(repeats)) of the best: closer than that, a few networks
cannot tell sizes apart. It skips sizes that are measured to be worse than a smaller one (see `verdict`). Exceptions:

- On a metered connection, the plan takes the best measured accuracy. Ties go to the fewest bytes to fetch, then to the
  largest size.
- A size without a measurement counts as the next smaller size with one. With no measurements, the plan takes K.
- With `min_accuracy`, the plan takes the smallest k that reaches it.
- If the caller names a size, the plan takes the largest of 1..K up to that size, whatever its accuracy.
- If time or energy limits the training, and shorter trainings were measured too, the plan chooses among pairs of k and
  epochs by the same rule. Among pairs with the same k, it takes the more accurate one, then the shorter training.

A larger budget only adds candidates, so the best candidate never gets worse. Unless the caller names a size, a larger
budget therefore never lowers the measured accuracy by more than that standard error. For fixed epochs or a named size,
it never lowers k either.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

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
"""Memory of a step, in kept activations: the activations, their gradients, augmentation and scratch space of the
libraries. Measured by benchmarks/cost_model.py."""
OPERATIONS_PER_BYTE = 140
"""Cost of memory traffic, in operations of a matrix product per byte. In every step, norms, activations, pooling and
augmentation process each kept byte of an image, and the optimiser each byte of the weights. Measured by
benchmarks/cost_model.py. F counts only convolutions and matrix products."""
IMAGE_COPIES = 2
"""The decoded images, and their normalised copy."""
LIBRARY_BYTES = 4_000_000
"""What loaded libraries take for any training: code read from disk on first use, kernels generated for the shapes, and
memory that the allocator keeps. Measured by benchmarks/cost_model.py."""
DEFAULT_BATCH = 64
SMALLEST = 1e-3
"""Lower limit of rates and power: no device is slower, and quotients stay finite."""


class Kind(NamedTuple):
    """The type and range of a budget field."""

    json_type: Literal["integer", "number", "boolean", "string"]
    least: float = 0
    most: float = LARGEST

    @property
    def is_number(self) -> bool:
        """Whether values are numbers, bounded by `least` and `most`."""
        return self.json_type in ("integer", "number")

    @property
    def is_whole(self) -> bool:
        """Whether values are whole numbers."""
        return self.json_type == "integer"


_BYTES = Kind("integer")
_AMOUNT = Kind("number")
_RATE = Kind("number", SMALLEST)
_COUNT = Kind("integer", 1, MOST_STEPS)
_SHARE = Kind("number", 0, 1)
_RANKS = Kind("integer", 0, rankmajor.LARGEST)
_FLAG = Kind("boolean")
_TEXT = Kind("string")


class BudgetField(NamedTuple):
    """One field of a budget: the only description of it, for Python, the API and the command line."""

    name: str
    kind: Kind
    unit: str
    """Placeholder for the value in help texts; empty for a flag."""
    description: str


def _limit(kind: Kind, unit: str, description: str, default: object = None) -> Any:
    return field(default=default, metadata={"kind": kind, "unit": unit, "description": description})


@dataclass(frozen=True)
class Budget:
    """What a device can spend; an omitted field means no limit. Invalid values raise `ConfigError`.

    `seconds` needs `flops` or `bandwidth_bps`; `joules` also needs `watts`. An omitted rate counts as infinitely fast.
    `budget_fields` lists all fields with their types, ranges and descriptions.
    """

    memory_bytes: int | None = _limit(
        _BYTES,
        "BYTES",
        "Memory for training: weights, gradients, optimiser, activations and the set itself; the libraries take about "
        "550 MB more.",
    )
    storage_bytes: int | None = _limit(_BYTES, "BYTES", "Space for the subset's file.")
    transfer_bytes: int | None = _limit(_BYTES, "BYTES", "Bytes that may be fetched now.")
    bandwidth_bps: float | None = _limit(_RATE, "BIT/S", "Bandwidth of the connection in bits per second.")
    metered: bool = _limit(
        _FLAG,
        "",
        "The connection is paid by the byte: fetch only bytes measured to raise the accuracy.",
        False,
    )
    seconds: float | None = _limit(_AMOUNT, "S", "Deadline for fetching and training, in seconds.")
    flops: float | None = _limit(
        _RATE, "FLOP/S", "Floating point operations per second that the device sustains in a matrix product."
    )
    joules: float | None = _limit(_AMOUNT, "J", "Energy for fetching and training, in joules.")
    watts: float | None = _limit(
        _RATE, "W", "Power that the device draws while fetching and training, in watts."
    )
    min_accuracy: float | None = _limit(
        _SHARE, "A", "Take the smallest k measured to reach this test accuracy, a fraction from 0 to 1."
    )
    have_k: int = _limit(_RANKS, "K", "Ranks that the device already has.", 0)
    network: str | None = _limit(
        _TEXT, "NAME", "Network to train, named as in the manifest; by default the first one measured."
    )
    epochs: int | None = _limit(
        _COUNT, "N", "Epochs of the training; by default chosen from those measured in the manifest."
    )
    batch_size: int | None = _limit(_COUNT, "N", "Images per step; by default the manifest's.")

    def __post_init__(self) -> None:
        for name, one in budget_fields().items():
            if one.kind.is_number:
                _check_number(name, getattr(self, name), one.kind)
        if self.have_k is None:
            raise ConfigError("have_k is None: give the number of ranks that the device has, 0 for none")
        if not isinstance(self.metered, bool):
            raise ConfigError(f"metered is {shown(self.metered)}: give true or false")
        if self.network is not None and (not isinstance(self.network, str) or not self.network):
            raise ConfigError(f"network is {shown(self.network)}: give the name of a network in the manifest")
        timed = self.flops is not None or self.bandwidth_bps is not None
        if self.seconds is not None and not timed:
            raise ConfigError("seconds limits fetching and training: give flops or bandwidth_bps with it")
        if self.joules is not None and (self.watts is None or not timed):
            raise ConfigError(
                "joules are watts times seconds: give watts, and flops or bandwidth_bps with it"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, str | int | float | bool | None]) -> Budget:
        """Build a budget from query or JSON fields; a field that is None counts as omitted.

        `ConfigError` names the unknown or invalid field.
        """
        known = list(budget_fields())
        for name in values:
            if name not in known:
                raise ConfigError(f"a budget has no field {shown(name)}: choose from {', '.join(known)}")
        parsed = {name: _parsed(name, value) for name, value in values.items() if value is not None}
        return cls(**parsed)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, str | float | bool]:
        """The fields that are set, as `from_mapping` takes them."""
        return {key: value for key, value in asdict(self).items() if value not in (None, False)}


def budget_fields() -> dict[str, BudgetField]:
    """Every field of `Budget` by name, in order."""
    return {one.name: BudgetField(one.name, **one.metadata) for one in fields(Budget)}


def budget_schema() -> dict[str, dict[str, object]]:
    """JSON Schema of each field of a budget."""
    return {name: _field_schema(one) for name, one in budget_fields().items()}


def _field_schema(one: BudgetField) -> dict[str, object]:
    kind = one.kind
    bounds = {"minimum": kind.least, "maximum": kind.most} if kind.is_number else {}
    return {"type": kind.json_type, **bounds, "description": one.description}


def _stated(description: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class Plan:
    """The subset for a budget, and its expected cost. None: the budget and the manifest do not determine it."""

    k: int = _stated("Size of the subset.")
    have_k: int = _stated("Ranks that the device already has.")
    delta_bytes: int = _stated("Bytes to fetch; 0 if the device has k ranks or more.")
    byte_range: tuple[int, int] = _stated(
        "Where these bytes are in the file of subset k: the first byte, and the one after the last."
    )
    total_bytes: int = _stated("Bytes of the file.")
    seconds: float | None = _stated("Expected time to fetch and train, in seconds.")
    joules: float | None = _stated("Expected energy to fetch and train, in joules.")
    memory_bytes: int | None = _stated("Expected memory of the training, in bytes.")
    accuracy: float | None = _stated(
        "Mean test accuracy measured at this k, or at the next smaller measured k."
    )
    limited_by: str | None = _stated(
        "Why k is not larger: the budget field that excludes k + 1; `accuracy` if k + 1 would fit but is no better; "
        "`min_accuracy` if it would fit but is not needed. Null if the set, or the requested k, ends here."
    )
    epochs: int = _stated("Epochs of the training that this plan assumes.")
    verdict: Verdict | None = _stated(  # noqa: RUF009 — the type is a string
        "Whether the subset that `accuracy` was measured on is worth its bytes; see the manifest's accuracy table.",
        default=None,
    )
    reason: str | None = _stated(
        "Why larger sizes that fit were skipped. Null if none was, or if `min_accuracy` is the reason.",
        default=None,
    )

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON; `byte_range` becomes a list."""
        return {**asdict(self), "byte_range": list(self.byte_range)}


def plan_descriptions() -> dict[str, str]:
    """The description of each field of `Plan`."""
    return {one.name: one.metadata["description"] for one in fields(Plan)}


def plan(manifest: Manifest, budget: Budget, at_most: int | None = None) -> Plan:
    """Choose the subset for this budget by the rule above; `at_most` is the size that the caller named.

    Raises `BudgetError` with the limiting field and the least that would fit if nothing fits, and `ConfigError` if the
    manifest lacks the budget's network or `have_k`, or the size `at_most`.
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
    """A size that fits with a given training."""

    training: _Training
    largest: int
    """The largest size that fits with it."""
    k: int
    measured: _Measured


def _most_accurate(
    manifest: Manifest, budget: Budget, trainings: list[_Training], top: int, *, is_named: bool
) -> Plan:
    """The rule's choice among 1..`top`; if the caller named a size, the largest that fits."""
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
    """The size of a stretch to take: the largest, or on a metered connection the one that the device has."""
    if is_named or not budget.metered:
        return stretch.last
    return min(stretch.last, max(stretch.first, budget.have_k))


def _as_good_as_the_best(options: list[_Option]) -> list[_Option]:
    """The options within one standard error of the best, without those measured to be worse than a smaller size."""
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
    """The smallest k that is measured to reach the accuracy and fits with one of the trainings."""
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
            f"none is measured above {best:.4f}: lower min_accuracy",
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
    """The largest of 1..`top` that meets every limit, 0 if none does. Bisection works, as every cost grows with k."""
    return bisect_left(
        range(1, top + 1),
        True,
        key=lambda k: next(_excesses(_candidate(manifest, budget, training, k), budget), None) is not None,
    )


class _Measured(NamedTuple):
    """The measurement that a size counts with."""

    accuracy: float
    """Mean test accuracy."""
    error: float
    """Its standard error; 0 with a single repeat."""
    verdict: Verdict | None


_NOTHING = _Measured(-1.0, 0.0, None)
"""For a size without a measurement of it or of any smaller one."""


class _Stretch(NamedTuple):
    """Consecutive sizes that count with the same measurement."""

    first: int
    last: int
    measured: _Measured


def _stretches(training: _Training, first: int, last: int) -> Iterator[_Stretch]:
    """The stretches of `first`..`last`, in order."""
    sizes = sorted(training.measured)
    begins = [first, *(size for size in sizes if first < size <= last)]
    for begin, following in zip(begins, [*begins[1:], last + 1], strict=True):
        if begin < following:
            at = bisect_right(sizes, begin)
            yield _Stretch(begin, following - 1, training.measured[sizes[at - 1]] if at else _NOTHING)


@dataclass(frozen=True)
class _Training:
    """A training that the device may run on a subset."""

    cost: Cost | None
    epochs: int
    batch_size: int
    measured: Mapping[int, _Measured]
    """By k: the measurement with the most epochs that do not exceed `epochs`."""


def _trainings(manifest: Manifest, budget: Budget) -> list[_Training]:
    """The trainings to choose from, shortest first: just one, unless the time of a training is limited."""
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
            f"the manifest of {manifest.name!r} has no training cost for {network or 'any network'}: "
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
    """By k, the measurements of the longest training that does not exceed `epochs`; empty if all do."""
    nearest = max((row.epochs for row in rows if row.epochs <= epochs), default=None)
    alike = [row for row in rows if row.epochs == nearest]
    return {
        row.k: _Measured(row.mdc_mean, row.mdc_std / math.sqrt(row.repeats), verdict)
        for row, verdict in zip(alike, verdicts(alike), strict=True)
    }


def _candidate(manifest: Manifest, budget: Budget, training: _Training, k: int) -> Plan:
    """The cost of subset k, whether or not it fits."""
    info = manifest.info
    end = rankmajor.subset_size(info, k)
    # A device that has ranks writes header(k) itself: the manifest determines it.
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
    """Field, limit and need, for every limit that the candidate exceeds."""
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
    """The plan with `limited_by`: what rules out the next larger size."""
    if chosen.k == top:
        return chosen
    excess = next(_excesses(_candidate(manifest, budget, training, chosen.k + 1), budget), None)
    if excess is not None:
        return replace(chosen, limited_by=excess[0])
    if budget.min_accuracy is not None:
        return replace(chosen, limited_by="min_accuracy")
    return replace(chosen, limited_by="accuracy")


def _with_words(chosen: Plan, passed_over: Iterable[_Stretch], budget: Budget) -> Plan:
    """The plan with `reason`: why no larger size that fits was taken."""
    otherwise = "not measured to be more accurate" if budget.metered else "measured to be less accurate"
    groups: dict[str, list[int]] = {}
    for larger in passed_over:
        is_worse = larger.measured.verdict == WORSE_THAN_SMALLER
        reason = WORSE_THAN_SMALLER if is_worse else otherwise
        groups.setdefault(reason, []).extend(range(larger.first, larger.last + 1))
    reasons = [f"k = {sizes_text(sizes)} would fit, but is {reason}" for reason, sizes in groups.items()]
    return replace(chosen, reason="; ".join(reasons) or None)


def _refuse(least: Plan, budget: Budget) -> None:
    """Raise a `BudgetError` that names every limit which even the smallest acceptable subset exceeds."""
    excesses = list(_excesses(least, budget))
    texts = [f"{name} is {limit:.15g}, but it needs {need:.15g}" for name, limit, need in excesses]
    raise BudgetError(
        f"the budget is too small for subset {least.k}, the smallest that would do: {'; '.join(texts)}",
        excesses[0][0],
        excesses[0][2],
    )


def _recipe(manifest: Manifest, key: str, default: int) -> int:
    return int(manifest.recipe.get(key, default))  # parsing the manifest has checked type and bounds


def _check_number(name: str, value: object, kind: Kind) -> None:
    """Raise `ConfigError` unless `value` is None or a number of this kind and range."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if kind.is_whole else int | float):
        raise ConfigError(f"{name} is {shown(value)}: give a {'whole ' if kind.is_whole else ''}number")
    assert isinstance(value, int | float)
    if not kind.least <= value <= kind.most:  # NaN fails the comparison too
        raise ConfigError(f"{name} is {shown(value)}: give a number from {kind.least:g} to {kind.most:g}")


def _parsed(name: str, value: str | float | bool) -> object:
    """Parse a field's value from text. Other values pass unchanged; `Budget` checks types and ranges."""
    if name == "network":
        return value
    if name == "metered":
        return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower(), value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{name} is {shown(value)}: give a number") from None
    if (
        isinstance(value, float)
        and budget_fields()[name].kind.is_whole
        and value.is_integer()
        and abs(value) <= LARGEST
    ):
        return int(value)
    return value
