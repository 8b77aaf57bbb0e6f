"""What to lower so that a run takes less time: the settings, and values that reach a wanted one. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mdc_core.config import CondenseConfig, DataFacts, EvaluateConfig, NetworkConfig, check_network
from mdc_core.errors import ConfigError
from mdc_core.estimate import Speed, estimate
from mdc_core.presets import merge

WANTED_LOOPS = 20
"""Fewer outer loops give little; where time has no room for them, each is made cheaper first."""
_EVALUATION_SHARE = 0.25
"""Of the time, at the most."""
_FEWEST_EPOCHS = 50
_SMALL_SIDE = 32


@dataclass(frozen=True)
class Shorter:
    """A shorter run: settings that differ, and what it takes."""

    condense: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    image_size: int | None
    """Side to ask for; None: as it is."""
    seconds: float
    """Expected time; more than what was wanted when nothing here can lower it so far."""


def shorter(
    config: CondenseConfig, facts: DataFacts, recipe: EvaluateConfig | None, *, speed: Speed, seconds: float
) -> Shorter:
    """A run of about `seconds` at the most.

    It has fewer outer loops; where these become too few also a smaller network, then fewer inner iterations, then
    smaller images where they are resized. An evaluation that takes more than a quarter of the time gets fewer epochs.
    """
    *earlier, last = _cheaper(config, facts, recipe)
    for changes, side in earlier:
        found = _fitted(config, facts, recipe, speed, seconds, changes, side)
        if found.seconds <= seconds and _loops(found, config) >= min(WANTED_LOOPS, config.outer_loops):
            return found
    return _fitted(config, facts, recipe, speed, seconds, *last)


def _loops(found: Shorter, config: CondenseConfig) -> int:
    loops: int = found.condense.get("outer_loops", config.outer_loops)
    return loops


def _cheaper(
    config: CondenseConfig, facts: DataFacts, recipe: EvaluateConfig | None
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Changes that make an outer loop cheaper, each with the ones before it; the first is none."""
    changes: dict[str, Any] = {}
    yield changes, None
    for width in (config.network.width // 2, config.network.width // 4):
        if width >= 4:
            changes = {**changes, "network": {"width": width}}
            yield changes, None
    if config.inner_iterations > 20:
        changes = {**changes, "inner_iterations": 20}
        yield changes, None
    networks = [config.network, *([] if recipe is None else [recipe.network])]
    if facts.own_side is not None and facts.image_size > _SMALL_SIDE and all(map(_takes_small, networks)):
        yield changes, _SMALL_SIDE


def _takes_small(network: NetworkConfig) -> bool:
    try:
        check_network(network, _SMALL_SIDE)
    except ConfigError:
        return False
    return True


def _fitted(
    config: CondenseConfig,
    facts: DataFacts,
    recipe: EvaluateConfig | None,
    speed: Speed,
    seconds: float,
    changes: Mapping[str, Any],
    side: int | None,
) -> Shorter:
    """With these changes, as many outer loops as there is time for."""
    facts = facts if side is None else facts.model_copy(update={"image_size": side})
    judged = {} if recipe is None else _judged(config, facts, recipe, speed, seconds, changes)
    recipe = recipe and EvaluateConfig.model_validate(merge(recipe.model_dump(), judged))
    one = estimate(_changed(config, {**changes, "outer_loops": 1}), facts, recipe, speed=speed)
    assert one.seconds_total is not None
    assert one.seconds_per_outer_loop is not None
    loops = min(
        config.outer_loops, 1 + int(max(0.0, seconds - one.seconds_total) / one.seconds_per_outer_loop)
    )
    if loops < config.outer_loops:
        changes = {**changes, "outer_loops": loops}
        if config.uses_mls and loops < 2 * config.mls_period:
            changes = {**changes, "mls_period": max(1, loops // 10)}
    total = estimate(_changed(config, changes), facts, recipe, speed=speed).seconds_total
    assert total is not None
    return Shorter(changes, judged, side, total)


def _judged(
    config: CondenseConfig,
    facts: DataFacts,
    recipe: EvaluateConfig,
    speed: Speed,
    seconds: float,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """Changes of the evaluation: the smaller network where that is the one that is matched, and fewer epochs."""
    judged: dict[str, Any] = {}
    if "network" in changes and recipe.network == config.network:
        judged["network"] = changes["network"]
    recipe = EvaluateConfig.model_validate(merge(recipe.model_dump(), judged))
    takes = estimate(config, facts, recipe, speed=speed).seconds_evaluation
    assert takes is not None
    epochs = max(_FEWEST_EPOCHS, int(recipe.epochs * _EVALUATION_SHARE * seconds / max(takes, 1e-9)))
    if epochs < recipe.epochs:
        judged["epochs"] = epochs
    return judged


def _changed(config: CondenseConfig, changes: Mapping[str, Any]) -> CondenseConfig:
    return CondenseConfig.model_validate(merge(config.model_dump(), changes))
