"""The most learnable subset (MLS): the n of the subset loss and the frozen prefix (arXiv 2403.06075, Eq. 5-10).

The state is a value: `advance` takes one and returns the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mdc_core.config.settings import CondenseConfig
from mdc_core.errors import ConfigError


@dataclass(frozen=True)
class Track:
    """The selections for all classes together or, class-wise, for one class."""

    selections: tuple[int, ...] = (1,)
    """Every n* selected so far, in order; the first is S[1] (Algorithm 1, line 4)."""
    previous: tuple[float, ...] | None = None
    """F(1..N-1) as last measured; None: not yet."""

    @property
    def selected(self) -> int:
        """n*, the size of the subset in the loss."""
        return self.selections[-1]

    def frozen(self, rule: str) -> int:
        """How many leading ranks are frozen (`frozen_prefix`)."""
        return frozen_prefix(self.selections, rule)


@dataclass(frozen=True)
class MlsState:
    """One track for all classes, or one per class."""

    tracks: tuple[Track, ...]

    def of_class(self, label: int) -> Track:
        """The track of a class."""
        return self.tracks[label if len(self.tracks) > 1 else 0]


def start(config: CondenseConfig, classes: int) -> MlsState:
    """The state before the first outer loop."""
    return MlsState((Track(),) * (classes if config.class_wise else 1))


def is_measured(config: CondenseConfig, outer: int) -> bool:
    """Whether outer loop t = `outer` (1-based) measures subset distances: the first one and every Δt-th do."""
    return config.uses_mls and (outer == 1 or outer % config.mls_period == 0)


def advance(state: MlsState, distances: Sequence[Sequence[float]]) -> MlsState:
    """The state after a measurement of F(1..N-1), one row per track.

    The first measurement is only stored. Each later one selects n* = argmax |F(n) - F_prev(n)|, the subset whose
    distance changes fastest. The constant factor 1/Δt is left out, as it does not change the argmax.

    Raises:
        ConfigError: the number of rows or of distances does not match the state.
    """
    if len(distances) != len(state.tracks):
        raise ConfigError(f"{len(distances)} rows of distances for {len(state.tracks)} tracks")
    return MlsState(tuple(map(_advance_track, state.tracks, distances)))


def select(rates: Sequence[float]) -> int:
    """n* from the rates of change of F(1..N-1): the n of the largest rate, the smallest n on a tie."""
    return max(range(len(rates)), key=lambda i: (rates[i], -i)) + 1


def frozen_prefix(selections: Sequence[int], rule: str) -> int:
    """How many leading ranks are frozen after these selections (Eq. 10).

    - `predecessor`: a larger n* freezes its predecessor's prefix, a smaller one unfreezes all, an equal one changes
      nothing.
    - `cumulative`: the largest earlier selection below n*; the rule of the released code.
    - `none`: 0.
    """
    if rule == "none":
        return 0
    if rule == "cumulative":
        return max((n for n in selections if n < selections[-1]), default=0)
    frozen = 0
    for before, now in pairwise(selections):
        if now != before:
            frozen = before if now > before else 0
    return frozen


def _advance_track(track: Track, distances: Sequence[float]) -> Track:
    now = tuple(map(float, distances))
    if track.previous is None:
        return Track(track.selections, now)
    if len(now) != len(track.previous):
        raise ConfigError(f"{len(now)} subset distances, but {len(track.previous)} were measured before")
    rates = [abs(f - before) for f, before in zip(now, track.previous, strict=True)]
    return Track((*track.selections, select(rates)), now)
