"""How to shorten a run to a given time; durations as text. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mdc_core.config.estimate import Estimate, Speed, estimate
from mdc_core.config.presets import merge
from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig, NetworkConfig, check_network
from mdc_core.errors import ConfigError

C = TypeVar("C", CondenseConfig, EvaluateConfig)

WANTED_LOOPS = 20
"""With fewer outer loops, results suffer; if the time does not suffice, each loop is made cheaper first."""
_EVALUATION_SHARE = 0.25
"""Of the time, at the most."""
_FEWEST_EPOCHS = 50
_POOL_SHARE, _FEWEST_SAMPLES = 0.5, 10_000
"""Of the time, at the most, for the networks of a pool; and what each has to see of the real images to know them."""
_SMALL_SIDE = 32


@dataclass(frozen=True)
class Shorter:
    """A shorter run: the changed settings, and its expected time."""

    condense: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    image_size: int | None
    """Image side to request; None if unchanged."""
    preset: str | None
    """Preset to request, because another side would change the default preset; None if unchanged."""
    seconds: float
    """Expected time; longer than requested if these changes do not suffice."""


@dataclass(frozen=True)
class Run:
    """A requested run, and the speed of its machine."""

    preset: str
    """The preset that its settings started from."""
    condense: CondenseConfig
    facts: DataFacts
    evaluate: EvaluateConfig | None
    speed: Speed

    def shorter(self, seconds: float) -> Shorter:
        """A run of at most about `seconds`.

        First, outer loops are reduced. If they become too few, the network is made smaller, then inner iterations are
        reduced, then images are made smaller if they are resized. If the evaluation takes more than a quarter of the
        time, its epochs are reduced. If the pool takes more than half, its networks see fewer images.
        """
        *earlier, last = self._cheaper()
        for changes, side in earlier:
            found = self._fitted(seconds, changes, side)
            loops = found.condense.get("outer_loops", self.condense.outer_loops)
            if found.seconds <= seconds and loops >= min(WANTED_LOOPS, self.condense.outer_loops):
                return found
        return self._fitted(seconds, *last)

    def _cheaper(self) -> Iterator[tuple[dict[str, Any], int | None]]:
        """Changes that make an outer loop cheaper, cumulatively; the first is no change."""
        config, facts = self.condense, self.facts
        changes: dict[str, Any] = {}
        yield changes, None
        for width in (config.network.width // 2, config.network.width // 4):
            if width >= 4:
                changes = {**changes, "network": {"width": width}}
                yield changes, None
        if config.inner_iterations > 20:
            changes = {**changes, "inner_iterations": 20}
            yield changes, None
        networks = [config.network, *([] if self.evaluate is None else [self.evaluate.network])]
        # The settings of feature matching depend on the side, so another side would be another run.
        resized = facts.own_side is not None and config.method == "idc"
        if resized and facts.image_size > _SMALL_SIDE and all(map(_takes_small, networks)):
            yield changes, _SMALL_SIDE

    def _fitted(self, seconds: float, changes: Mapping[str, Any], side: int | None) -> Shorter:
        """The run with these changes and as many outer loops as fit the time."""
        config = self.condense
        facts = self.facts if side is None else self.facts.model_copy(update={"image_size": side})
        judged, recipe = self._judged(seconds, changes, facts)
        changes = {**changes, **self._pool(seconds, changes, facts)}

        def takes(**more: int) -> Estimate:
            return estimate(with_changes(config, {**changes, **more}), facts, recipe, speed=self.speed)

        one = takes(outer_loops=1)
        left = max(0.0, seconds - (one.seconds_total or 0)) / (one.seconds_per_outer_loop or 1)
        if (loops := 1 + int(left)) < config.outer_loops:
            changes = {**changes, "outer_loops": loops}
            if config.uses_mls and loops < 2 * config.mls_period:
                changes = {**changes, "mls_period": max(1, loops // 10)}
        return Shorter(
            condense=changes,
            evaluate=judged,
            image_size=side,
            preset=None if side is None else self.preset,
            seconds=takes().seconds_total or 0.0,
        )

    def _pool(self, seconds: float, changes: Mapping[str, Any], facts: DataFacts) -> dict[str, int]:
        """Changes to the training of the pool."""
        config = with_changes(self.condense, changes)
        takes = estimate(config, facts, speed=self.speed).seconds_pool or 0.0
        samples = int(config.pool_samples * _POOL_SHARE * seconds / max(takes, 1e-9))
        samples = max(_FEWEST_SAMPLES, samples)
        return {"pool_samples": samples} if samples < config.pool_samples else {}

    def _judged(
        self, seconds: float, changes: Mapping[str, Any], facts: DataFacts
    ) -> tuple[dict[str, Any], EvaluateConfig | None]:
        """Changes to the evaluation, and the changed evaluation.

        It gets fewer epochs, and the smaller network if it uses the network that is matched.
        """
        if self.evaluate is None:
            return {}, None
        judged: dict[str, Any] = {}
        if "network" in changes and self.evaluate.network == self.condense.network:
            judged["network"] = changes["network"]
        recipe = with_changes(self.evaluate, judged)
        takes = estimate(self.condense, facts, recipe, speed=self.speed).seconds_evaluation or 0.0
        epochs = int(recipe.epochs * _EVALUATION_SHARE * seconds / max(takes, 1e-9))
        if (epochs := max(_FEWEST_EPOCHS, epochs)) < recipe.epochs:
            judged["epochs"] = epochs
        return judged, with_changes(self.evaluate, judged)


def with_changes(config: C, changes: Mapping[str, Any]) -> C:
    """The configuration with these settings, validated; a nested mapping (the network) is merged field by field."""
    return type(config).model_validate(merge(config.model_dump(), changes))


def _takes_small(network: NetworkConfig) -> bool:
    try:
        check_network(network, _SMALL_SIDE)
    except ConfigError:
        return False
    return True


def duration(seconds: float) -> str:
    """A duration with two significant digits in a suitable unit: `3.2 s`, `12 min`, `15 h`, `4 days`."""
    for unit, length, limit in (
        ("s", 1, 90),
        ("min", 60, 5400),
        ("h", 3600, 172_800),
        ("days", 86_400, None),
    ):
        if limit is None or seconds < limit:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    raise AssertionError("the last unit has no limit")
