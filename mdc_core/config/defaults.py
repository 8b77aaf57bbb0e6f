"""What a run is when little is said of it: its method, settings that suit the shape of the data, its time.

One rule for the command line and the service. The method is the one that is named; else that of the preset that is
named, or of the named data set; else gradient matching where a setting is given that belongs to it; else feature
matching. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdc_core.config.presets import PRESETS, check_preset, condense_config, merge, preset_for
from mdc_core.config.settings import UNUSED, CondenseConfig, DataFacts
from mdc_core.errors import ConfigError

METHODS: Mapping[str, Mapping[str, Any]] = {
    "feature": {"method": "feature"},
    "idc": {"method": "idc"},
    "dream": {"method": "dream"},
    "mdc": {"method": "idc", "subset_loss": "mls"},
}
"""For each method name, the settings that it stands for."""
OF_IDC = frozenset(UNUSED["feature"]) | {
    "mls_period",
    "freeze",
    "class_wise",
    "subset_metric",
    "accuracy_epochs",
    "accuracy_augment",
    "accuracy_cutmix",
}
"""Settings that imply gradient matching; so does a subset_loss other than `all`."""
SCHEDULE = ("outer_loops", "inner_iterations", "pool", "pool_samples")
"""Settings that determine how long feature matching takes; planning by time chooses them."""
DEFAULT_MINUTES = 10.0
"""Time for users' own data without a schedule."""
MAX_MINUTES = 525_600.0
"""Upper limit of the time: a year."""
WIDTHS: Mapping[str, tuple[int, ...]] = {"convnet": (128, 64, 32, 16), "resnet_ap": (64, 32, 16, 8)}
"""By the network's name, widths that a given time decides between, the widest first; the last one is a last resort."""
_SMALL_SIDE = 16
"""Up to it a quarter of an image shows nothing any more, so that an image is one tile."""
_LAST_MAP = 4
"""Side of the last feature map, about: smaller ones know no places, larger ones make a head of many weights."""


@dataclass(frozen=True)
class Choice:
    """A run's settings; only what planning by time decides is left open."""

    preset: str
    condense: CondenseConfig
    minutes: float | None
    """Time that determines the settings of `SCHEDULE`, and the width unless it is explicit; None if they are given."""
    is_default_time: bool
    """Whether the time is the default, not requested."""
    widths: tuple[int, ...]
    """Widths to choose from by time, widest first; a single one if it is explicit."""
    may_shrink: bool
    """Whether the time may decide that networks see images at the tile side."""
    lowered: str | None
    """What was lowered, and why; None if nothing was."""


def choose(
    facts: DataFacts,
    preset: str | None,
    overrides: Mapping[str, Any],
    *,
    is_own: bool,
    minutes: float | None = None,
) -> Choice:
    """The run that these settings mean on such data.

    Args:
        facts: of the data, with the side that images get.
        preset: the one that is named; None: none is.
        overrides: settings of a condensation; `method` may be any of `METHODS`.
        is_own: whether the data are somebody's own, rather than one of the named sets.
        minutes: the time that is asked for.

    Raises:
        ConfigError: for an unknown preset, and for settings that contradict each other.
        ValidationError: for a setting that is impossible.
    """
    named = preset if preset is None else check_preset(preset)
    base = preset_for(facts) if named is None else named
    overrides = _in_full(overrides)
    method = _method(base if named is not None or not is_own else None, overrides)
    published = named is not None and PRESETS[named].method == "idc"
    if "method" not in overrides and method == "feature":
        overrides = {**overrides, "method": method}
    time = _time(minutes, method, named if published else None, overrides, is_own)
    suited: dict[str, Any] = {}
    lowered: str | None = None
    if is_own and method == "feature" and not published:
        suited, lowered = _suited(condense_config(base, overrides), facts, overrides)
    network = overrides.get("network")
    free = not (isinstance(network, Mapping) and "width" in network)
    condense = condense_config(base, merge(suited, overrides))
    return Choice(
        preset=base,
        condense=condense,
        minutes=time,
        is_default_time=minutes is None,
        widths=WIDTHS[condense.network.name] if free else (condense.network.width,),
        may_shrink="at_tile_side" not in overrides and _may_shrink(condense, facts),
        lowered=lowered,
    )


def sentences(*parts: str | None) -> str | None:
    """The non-empty parts as one text without the final full stop; None if there are none."""
    return ". ".join(part for part in parts if part) or None


def depth_for(image_size: int) -> int:
    """Blocks of a ConvNet for images of that side: its last feature map has 3..5 pixels a side, or 2 and less."""
    return min(8, max(2, round(math.log2(image_size / _LAST_MAP))))


def _may_shrink(config: CondenseConfig, facts: DataFacts) -> bool:
    """Whether tiles are smaller than images, and large enough for networks of their own."""
    return (
        config.factor > 1
        and config.tile_side(facts.image_size) >= _SMALL_SIDE
        and config.network.name == "convnet"
    )


def _in_full(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the method's name expanded to what it stands for."""
    word = overrides.get("method")
    if isinstance(word, str) and word not in METHODS:
        raise ConfigError(f"method is {word!r}: choose one of {', '.join(METHODS)}")
    meant = METHODS[word] if isinstance(word, str) else {}
    for name, value in meant.items():
        if name != "method" and overrides.get(name, value) != value:
            raise ConfigError(
                f"method {word!r} has {name} {value!r}, but {name} is {overrides[name]!r}: leave one of them out"
            )
    return {**overrides, **meant}


def _method(preset: str | None, overrides: Mapping[str, Any]) -> object:
    """The method by name, checked where the configuration is made; `preset`: the one that decides, if any does."""
    if "method" in overrides:
        return overrides["method"]
    of_idc = OF_IDC & overrides.keys() or overrides.get("subset_loss", "all") != "all"
    return "idc" if of_idc or (preset is not None and PRESETS[preset].method == "idc") else "feature"


def _time(
    minutes: float | None, method: object, published: str | None, overrides: Mapping[str, Any], is_own: bool
) -> float | None:
    """Minutes that decide the schedule; `published`: the preset of that kind that is named."""
    given = [name for name in SCHEDULE if name in overrides]
    if minutes is None:
        by_itself = is_own and method == "feature" and published is None and not given
        return DEFAULT_MINUTES if by_itself else None
    if not 0 < minutes <= MAX_MINUTES:
        raise ConfigError(f"minutes is {minutes}: it must be more than 0 and at most {MAX_MINUTES:.0f}")
    if published is not None:
        raise ConfigError(
            f"preset {published!r} is a published schedule, and minutes would choose another: leave one of them out"
        )
    if method != "feature":
        raise ConfigError(
            f"minutes chooses the schedule of method 'feature', but this run is of method {method!r}: leave "
            "minutes out, or say method 'feature' and leave out the settings of the other"
        )
    if given:
        raise ConfigError(f"minutes chooses {', '.join(given)} by itself: give the time or these, not both")
    return minutes


def _suited(
    usual: CondenseConfig, facts: DataFacts, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """Settings that suit the shape of users' own data, and what is lowered because there are few images."""
    room = facts.smallest_class // (usual.start_index + 1) if usual.init == "real" else math.inf
    factor = 1 if facts.image_size <= _SMALL_SIDE or usual.ipc * 2**2 > room else 2
    suited: dict[str, Any] = {
        "factor": factor,
        "network": {"name": "convnet", "depth": depth_for(facts.image_size)},
        "batch_real": min(usual.batch_real, facts.smallest_class),
    }
    if usual.ipc * factor**2 <= room or overrides.keys() & {"ipc", "factor"}:
        return suited, None
    ipc = max(1, int(room))
    return (
        {**suited, "ipc": ipc},
        f"The default ipc is lowered to {ipc} from {usual.ipc}, as a class has {facts.smallest_class} training images",
    )
