"""How a given time is spent by feature matching: networks of a pool, their samples and width, updates of the tiles.

Seven tenths of the time train the pool, a quarter matches, up to as many updates as bring anything; what is left over
goes to the pool, up to as many samples as the widest network there is makes use of. Few networks that know the classes
are worth more than many that do not, so that a second network comes when each has seen enough, and a wider one when the
time is enough for both parts. Where too few updates would be left, networks see images at the tile side, which is f²
times cheaper, and are narrow at last. A run that has too few even so gets a warning, which says how much time or which
image side is enough. An evaluation, where there is one, comes first out of the time. All of it is arithmetic over
`mdc_core.config.estimate`. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeGuard

from mdc_core.config.defaults import MAX_MINUTES, depth_for
from mdc_core.config.estimate import Estimate, Speed, estimate, evaluation_work, train_images
from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig
from mdc_core.config.shorten import duration, with_changes
from mdc_core.errors import ConfigError

_POOL_SHARE, _MATCHING_SHARE = 0.7, 0.25
"""Of the time; the rest is for what no estimate knows."""
_MOST_UPDATES, _ENOUGH_UPDATES, _WORTHWHILE_UPDATES, _FEWEST_UPDATES = 300, 100, 50, 10
"""Of the tiles. Beyond the first nothing is gained, from the second on little. With fewer than the third a set is no
better than the shrunk real images that it starts from; with fewer than the last there is no run."""
_INNER = 10
"""Updates between two possible checkpoints, where there are enough of them."""
_WORTH_ANOTHER, _TRAINED_WELL, _FEWEST_SAMPLES = (20, 20_000), (100, 100_000), (5, 2_000)
"""Epochs and samples, of which the fewer count: of each network before a second one is worth it, of one that needs no
more, and of any."""
_RUNGS = (
    *(1.0, 1.12, 1.25, 1.4, 1.6, 1.8, 2.0, 2.25, 2.5, 2.8),
    *(3.15, 3.55, 4.0, 4.5, 5.0, 5.6, 6.3, 7.1, 8.0, 9.0),
)
"""Samples are one of these times a power of ten, so that a run of about the same time finds the pool of another."""
_FEW_NETWORKS, _MOST_NETWORKS = 3, 5
_JUDGING_SHARE, _MOST_JUDGING_SHARE = 0.25, 0.5
"""Of the time for an evaluation, and at the most where it would otherwise have fewer epochs than is worth anything."""
_ENOUGH_EPOCHS, _FEWEST_EPOCHS = 100, 20
_MANY_EPOCHS = 1000
"""So many that shares of them are whole numbers."""
_LADDER = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500)
"""Sizes that are evaluated beside the whole set where there is no time for every one."""
_SIDES = (512, 384, 256, 192, 128, 96, 64, 48, 32)
"""Image sides that are proposed where the time is too short for the one that is asked for, the largest first."""
_BESIDE = 1.2
"""Time to ask for, in the time that the run itself needs: for what comes before it, and for an estimate that is off."""
_PRECISE = 1.1
"""To this factor the least time is looked for."""


@dataclass(frozen=True)
class Machine:
    """What a run is planned for."""

    speed: Speed
    memory_bytes: int | None = None
    """None: not known."""
    gpu: bool = False


UNKNOWN = Machine(Speed(flops=5e10, bandwidth=2e9, start=2e-3))
"""One slow core: what is planned for while no machine is known."""


@dataclass(frozen=True)
class Pace:
    """Seconds that the two parts of a run take."""

    sample: float
    """Of one real image in the training of a network."""
    update: float
    """Of one update of all tiles."""


@dataclass(frozen=True)
class Size:
    """What a network costs by."""

    width: int
    at_tile_side: bool = False
    """Whether it sees images at the tile side; see `CondenseConfig.at_tile_side`."""

    def label(self) -> str:
        """In words."""
        return f"width {self.width}{' at the tile side' if self.at_tile_side else ''}"


@dataclass(frozen=True)
class Wanted:
    """A run whose schedule the time decides."""

    condense: CondenseConfig
    """Its schedule, and its width where there are several, are left out of account."""
    facts: DataFacts
    widths: tuple[int, ...]
    """That the network may have, the widest first."""
    may_shrink: bool = False
    """Whether networks may see images at the tile side."""
    largest: Size | None = None
    """The largest one that was not found to be trained too little; None: none was."""
    recipe: Callable[[CondenseConfig], EvaluateConfig] | None = None
    """The evaluation that comes with it, as it would be with any amount of time; None: none does."""
    given: frozenset[str] = frozenset()
    """Settings of the evaluation that are asked for."""


@dataclass(frozen=True)
class Timed:
    """A run of a given time."""

    condense: CondenseConfig
    evaluate: EvaluateConfig | None
    pace: Pace
    """By which it was planned."""
    seconds_pool: float
    seconds_matching: float
    seconds_evaluation: float
    chosen: str
    """What was chosen and why, in a sentence without its full stop."""
    warning: str | None = None
    """Why the set may be no better than shrunk real images, and what to ask for, likewise; None: nothing is wrong."""

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.seconds_pool + self.seconds_matching + self.seconds_evaluation


@dataclass(frozen=True)
class Division:
    """A time for condensing, divided."""

    networks: int
    samples: int
    """Of each network."""
    loops: int
    inner: int

    @property
    def updates(self) -> int:
        """Of the tiles, in the whole run."""
        return self.loops * self.inner


def in_time(
    wanted: Wanted,
    seconds: float,
    machine: Machine,
    measured: Callable[[Pace], Pace] = lambda pace: pace,
    *,
    or_longer: bool = False,
) -> Timed:
    """The best run of at most so many seconds by the rule of this module; it warns where that has too few updates.

    Args:
        wanted: what is to be condensed, and judged.
        seconds: for all of it; what no estimate knows, such as loading the data, aside.
        machine: what it runs on.
        measured: what an expected pace is found to be.
        or_longer: take the shortest run there is, where the time is too short for any.

    Raises:
        ConfigError: when the time is too short for any run; the message names one that is not.
    """
    found = _widest(wanted, seconds, machine, measured)
    if found is not None:
        return _warned(found, wanted, seconds, machine, measured)
    least, found = _shortest(wanted, seconds, machine, measured, _exists)
    if or_longer:
        return _warned(found, wanted, least, machine, measured)
    raise ConfigError(
        f"{duration(max(0.0, seconds))} are left for the run, but it takes at least {duration(least)}: "
        f"ask for more minutes, or for a smaller ipc or image_size"
    )


def _shortest(
    wanted: Wanted,
    seconds: float,
    machine: Machine,
    measured: Callable[[Pace], Pace],
    is_enough: Callable[[Timed | None], TypeGuard[Timed]],
) -> tuple[float, Timed]:
    """The least time whose run is enough, to a tenth, and that run; `seconds` are too short."""
    short = max(1.0, seconds)
    while not is_enough(found := _widest(wanted, enough := 2 * short, machine, measured)):
        short = enough
        if short > 60 * MAX_MINUTES:
            raise ConfigError(
                "the run takes more than a year: ask for a smaller ipc, image_size or evaluation"
            )
    while enough > _PRECISE * short:
        middle = (short * enough) ** 0.5
        better = _widest(wanted, middle, machine, measured)
        if is_enough(better):
            enough, found = middle, better
        else:
            short = middle
    return enough, found


def _exists(found: Timed | None) -> TypeGuard[Timed]:
    return found is not None


def _is_worthwhile(found: Timed | None) -> TypeGuard[Timed]:
    """Whether the tiles are updated often enough to be better than the shrunk images that they start from."""
    return found is not None and _updates(found.condense) >= _WORTHWHILE_UPDATES


def _updates(config: CondenseConfig) -> int:
    return config.outer_loops * config.inner_iterations


def _warned(
    found: Timed, wanted: Wanted, seconds: float, machine: Machine, measured: Callable[[Pace], Pace]
) -> Timed:
    """The run, with a warning where it has too few updates."""
    if _is_worthwhile(found):
        return found
    facts = wanted.facts
    enough, _ = _shortest(wanted, seconds, machine, measured, _is_worthwhile)
    remedies = [_count(math.ceil(_BESIDE * enough / 60), "minute")]
    side = _affordable_side(wanted, seconds, machine, measured)
    if side is not None:
        remedies.append(f"images of {side} pixels (image_size)")
    remedies.append("a smaller ipc")
    start = "shrunk real images" if wanted.condense.factor > 1 else "real images"
    warning = (
        f"{_updates(found.condense)} updates are too few for images of {facts.image_size} pixels: the set may be no "
        f"better than {start}. Ask for {', '.join(remedies[:-1])}, or {remedies[-1]}"
    )
    return replace(found, warning=warning)


def _affordable_side(
    wanted: Wanted, seconds: float, machine: Machine, measured: Callable[[Pace], Pace]
) -> int | None:
    """The largest smaller side with which so many seconds give enough updates; None: images are not resized."""
    facts, config = wanted.facts, wanted.condense
    for side in _SIDES:
        if facts.own_side is None or side >= facts.image_size:
            continue
        depth = min(config.network.depth, depth_for(side))
        smaller = replace(
            wanted,
            facts=facts.model_copy(update={"image_size": side}),
            condense=with_changes(config, {"network": {"depth": depth}}),
        )
        if _is_worthwhile(_widest(smaller, seconds, machine, measured)):
            return side
    return None


def pace_of(config: CondenseConfig, facts: DataFacts, machine: Machine) -> Pace:
    """The pace that is expected of that machine."""
    expected = _expected(config, facts, machine)
    assert expected.seconds_pool is not None
    assert expected.seconds_per_outer_loop is not None
    return Pace(
        sample=expected.seconds_pool / (config.pool * config.pool_samples),
        update=expected.seconds_per_outer_loop / config.inner_iterations,
    )


def divided(seconds: float, pace: Pace, images: int, *, is_widest: bool = False) -> Division | None:
    """A time for condensing `images` real ones, divided between pool and matching; None: it is too short.

    Networks that are the widest there are do not take more than brings anything.
    """
    share = _MATCHING_SHARE / (_MATCHING_SHARE + _POOL_SHARE)
    updates = min(_MOST_UPDATES, int(share * seconds / pace.update))
    samples = (seconds - updates * pace.update) / pace.sample
    networks = _networks(samples, images)
    most = _most_samples(images) if is_widest else math.inf
    each = _rounded(min(samples / networks, most))
    left = seconds - networks * each * pace.sample  # after rounding
    updates = min(_MOST_UPDATES, int(left / pace.update))
    inner = _INNER if updates >= 3 * _INNER else 1
    loops = updates // inner
    if updates < _FEWEST_UPDATES or each < _fewer(_FEWEST_SAMPLES, images):
        return None
    return Division(networks, each, loops, inner)


def _networks(samples: float, images: int) -> int:
    """How many networks share so many samples: few ones, until each of more has seen all that it needs."""
    well = int(samples / _fewer(_TRAINED_WELL, images))
    if well > _FEW_NETWORKS:
        return min(well, _MOST_NETWORKS)
    return max(1, min(int(samples / _fewer(_WORTH_ANOTHER, images)), _FEW_NETWORKS))


def _fewer(limits: tuple[int, int], images: int) -> int:
    """Samples: so many epochs, or so many samples."""
    epochs, samples = limits
    return min(epochs * images, samples)


def _most_samples(images: int) -> int:
    """Of a network: the same limits as for one that needs no more, of which the more count."""
    epochs, samples = _TRAINED_WELL
    return max(epochs * images, samples)


def _rounded(samples: float) -> int:
    """Down to a rung; below a hundred to a whole number."""
    if samples < 100:
        return max(0, int(samples))
    power: int = 10 ** (len(str(int(samples))) - 1)
    return int(max(rung * power for rung in _RUNGS if rung * power <= samples))


def _widest(
    wanted: Wanted, seconds: float, machine: Machine, measured: Callable[[Pace], Pace]
) -> Timed | None:
    """The run with the widest network that fits and for which the time is enough, else with the narrowest."""
    *larger, smallest = sizes = _sizes(wanted)
    first = 0 if wanted.largest is None else sizes.index(wanted.largest)
    images, usual = train_images(wanted.facts), wanted.widths[-2:][0]
    why = ""
    for position, size in enumerate(larger):
        found = _at_size(wanted, size, seconds, machine, measured) if position >= first else None
        is_wide = size.width > usual  # from the usual width on only too few updates count
        if found is None or not (_is_enough(found.condense, images) if is_wide else _is_worthwhile(found)):
            why = f"; networks of {size.label()} would {_too_little(None if is_wide else found)}"
        elif not _fits(found, wanted, machine):
            why = f"; networks of {size.label()} would take too much memory"
        else:
            return replace(found, chosen=found.chosen + why)
    found = _at_size(wanted, smallest, seconds, machine, measured)
    return found and replace(found, chosen=found.chosen + why)


def _sizes(wanted: Wanted) -> list[Size]:
    """What the time decides between, the most expensive first."""
    sizes = [Size(width, wanted.condense.at_tile_side) for width in wanted.widths]
    if not wanted.may_shrink:
        return sizes
    kept = sizes if len(sizes) == 1 else sizes[:-1]  # the narrowest one is for the tile side
    return [*kept, *(Size(size.width, at_tile_side=True) for size in sizes[-2:])]


def _too_little(found: Timed | None) -> str:
    """What there would be too little of."""
    return "be trained too little" if found is None else f"leave {_updates(found.condense)} updates"


def size_of(config: CondenseConfig) -> Size:
    """What its networks cost by."""
    return Size(config.network.width, config.at_tile_side)


def _is_enough(config: CondenseConfig, images: int) -> bool:
    """Whether networks are trained well and tiles updated often, so that a wider network takes nothing away."""
    trained = config.pool * config.pool_samples >= 0.99 * _FEW_NETWORKS * _fewer(_TRAINED_WELL, images)
    return trained and _updates(config) >= _ENOUGH_UPDATES


def _fits(found: Timed, wanted: Wanted, machine: Machine) -> bool:
    if machine.memory_bytes is None:
        return True
    expected = _expected(found.condense, wanted.facts, machine, found.evaluate)
    return expected.memory_bytes <= machine.memory_bytes


def _at_size(
    wanted: Wanted, size: Size, seconds: float, machine: Machine, measured: Callable[[Pace], Pace]
) -> Timed | None:
    """A run with a network of that size; None: the time is too short."""
    facts = wanted.facts
    changes = {"network": {"width": size.width}, "at_tile_side": size.at_tile_side}
    config = with_changes(wanted.condense, changes)
    pace = measured(pace_of(config, facts, machine))
    judged = _judged(wanted, config, seconds, machine)
    if judged is None:
        return None
    recipe, seconds_evaluation = judged
    left = (_POOL_SHARE + _MATCHING_SHARE) * seconds - seconds_evaluation
    images, is_widest = train_images(facts), size.width == wanted.widths[0]
    division = divided(left, pace, images, is_widest=is_widest) if left > 0 else None
    if division is None:
        return None
    is_all = is_widest and division == divided(2 * left, pace, images, is_widest=True)
    return Timed(
        condense=with_changes(
            config,
            {
                "pool": division.networks,
                "pool_samples": division.samples,
                "outer_loops": division.loops,
                "inner_iterations": division.inner,
            },
        ),
        evaluate=recipe,
        pace=pace,
        seconds_pool=division.networks * division.samples * pace.sample,
        seconds_matching=division.updates * pace.update,
        seconds_evaluation=seconds_evaluation,
        chosen=_sentence(config, division, pace, recipe)
        + ("; more time would bring nothing" if is_all else ""),
    )


def _judged(
    wanted: Wanted, config: CondenseConfig, seconds: float, machine: Machine
) -> tuple[EvaluateConfig | None, float] | None:
    """The evaluation for which there is time, and its seconds; None: there is time for none.

    Networks per size go first, then sizes; then more of the time goes to it; epochs become few last.
    """
    if wanted.recipe is None:
        return None, 0.0
    recipes = list(_lesser(wanted.recipe(config), config.ipc, wanted.given))
    for share, fewest, tried in (
        (_JUDGING_SHARE, _ENOUGH_EPOCHS, recipes),
        (_MOST_JUDGING_SHARE, _ENOUGH_EPOCHS, recipes),
        (_MOST_JUDGING_SHARE, _FEWEST_EPOCHS, recipes[-1:]),
    ):
        for recipe in tried:
            epochs = _epochs(recipe, config, wanted.facts, machine, share * seconds)
            if "epochs" in wanted.given:
                epochs = recipe.epochs if epochs >= recipe.epochs else 0
            if epochs >= min(fewest, recipe.epochs):
                found = with_changes(recipe, {"epochs": min(epochs, recipe.epochs)})
                return found, _evaluation_seconds(found, config, wanted.facts, machine)
    return None


def _lesser(usual: EvaluateConfig, ipc: int, given: frozenset[str]) -> Iterator[EvaluateConfig]:
    """The evaluation with fewer networks per size and fewer sizes, step by step, as far as none is asked for."""
    few = tuple(sorted({k for k in _LADDER if k < ipc} | {ipc}))
    sizes = [usual.sizes] if "sizes" in given else [usual.sizes, few, tuple(sorted({1, ipc}))]
    least = usual.repeats if "repeats" in given else 1
    yield usual
    for several in sizes:
        for repeats in range(usual.repeats, least - 1, -1):
            if (
                several is not None or repeats > 1
            ):  # one network for each of many sizes says less than two for few
                yield with_changes(usual, {"sizes": several, "repeats": repeats})


def _epochs(
    recipe: EvaluateConfig, config: CondenseConfig, facts: DataFacts, machine: Machine, seconds: float
) -> int:
    """How many epochs there is time for; 0 for none."""
    some, more = (
        _evaluation_seconds(with_changes(recipe, {"epochs": epochs}), config, facts, machine)
        for epochs in (_MANY_EPOCHS, 2 * _MANY_EPOCHS)
    )
    each = (more - some) / _MANY_EPOCHS
    return max(0, math.floor((seconds - some) / each) + _MANY_EPOCHS)


def _evaluation_seconds(
    recipe: EvaluateConfig, config: CondenseConfig, facts: DataFacts, machine: Machine
) -> float:
    return evaluation_work(recipe, config, facts).seconds(machine.speed)


def _expected(
    config: CondenseConfig, facts: DataFacts, machine: Machine, recipe: EvaluateConfig | None = None
) -> Estimate:
    return estimate(
        config,
        facts,
        recipe,
        speed=machine.speed,
        memory_limit=machine.memory_bytes,
        gpu=machine.gpu,
    )


def _sentence(config: CondenseConfig, division: Division, pace: Pace, recipe: EvaluateConfig | None) -> str:
    """What was chosen."""
    pool = duration(division.networks * division.samples * pace.sample)
    judging = ""
    if recipe is not None:
        sizes = ", ".join(map(str, recipe.sizes_of(config.ipc)))
        judging = (
            f", then {_count(recipe.repeats, 'network')} of {recipe.epochs} epochs for each of k = {sizes}"
        )
    return (
        f"Chosen for the time: {_count(division.networks, 'network')} of {size_of(config).label()}, trained on "
        f"{division.samples} images each ({pool}), then {division.updates} updates of the set "
        f"({duration(division.updates * pace.update)}){judging}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
