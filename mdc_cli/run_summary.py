"""What a run will do and take, shown before it starts; a run of more than a day asks for confirmation."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer

from mdc_cli.output import people, say
from mdc_core.config.settings import CondenseConfig, DataFacts
from mdc_core.config.shorten import duration
from mdc_core.errors import MdcError

DAY = 86_400.0
HOUR = 3600.0


@dataclass(frozen=True)
class RunSummary:
    """A run that has not started. Seconds are None if no machine's speed is known."""

    facts: DataFacts
    preset: str
    condense: CondenseConfig
    loops: int
    """Outer loops left to do."""
    seconds: float | None
    """Expected time of the whole run."""
    seconds_pool: float | None
    """The part of it that trains the pool's networks, if none exists yet."""
    seconds_per_loop: float | None
    seconds_evaluation: float | None
    memory_bytes: int
    """Expected peak memory."""
    chosen: str | None
    """What was chosen automatically, and why."""
    warning: str | None = None
    """What the time is too short for, and what to ask for instead."""

    def text(self) -> str:
        """The data set, the settings and the cost, on one line."""
        chosen = f" {self.chosen}." if self.chosen else ""
        return f"{_data_text(self.facts)}. {self._cost_text()}.{chosen}"

    def _cost_text(self) -> str:
        network, ipc = self.condense.network.label(), self.condense.ipc
        config = f"Method {_method(self.condense)}, preset {self.preset}, {network}, ipc {ipc}"
        memory = f"{self.memory_bytes / 1e9:.1f} GB of memory"
        if self.seconds is None or self.seconds_per_loop is None:
            return f"{config}: {self.loops} outer loops, {memory}; time unknown, as no worker is running"
        pool = f", {duration(self.seconds_pool)} for the network pool" if self.seconds_pool else ""
        evaluation = (
            f" and {duration(self.seconds_evaluation)} of evaluation" if self.seconds_evaluation else ""
        )
        return (
            f"{config}: about {duration(self.seconds)} for {self.loops} outer loops "
            f"({duration(self.seconds_per_loop)} each){pool}{evaluation}, {memory}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "facts": self.facts.model_dump(mode="json"),
            "method": _method(self.condense),
            "preset": self.preset,
            "chosen": self.chosen,
            "warning": self.warning,
            "network": self.condense.network.label(),
            "outer_loops": self.loops,
            "seconds": self.seconds,
            "seconds_pool": self.seconds_pool,
            "seconds_per_outer_loop": self.seconds_per_loop,
            "seconds_evaluation": self.seconds_evaluation,
            "memory_bytes": self.memory_bytes,
        }

    @property
    def is_long(self) -> bool:
        """Whether the run takes more than a day, so that it needs confirmation."""
        return self.seconds is not None and self.seconds > DAY


def warning(summary: RunSummary, options: str, seconds: float) -> str:
    """How to shorten the run, and the options with which it takes `seconds`."""
    sides = " smaller images (--image-size)," if summary.facts.own_side is not None else ""
    return (
        f"This takes about {duration(summary.seconds or 0)}. To shorten it: fewer outer loops, a smaller network,"
        f"{sides} fewer inner iterations; or a time instead of preset and schedule: --method feature --minutes 60. "
        f"The same command takes about {duration(seconds)} with: {options}"
    )


def ask(text: str, yes: bool) -> None:
    """Print `text` and ask for confirmation on a terminal. `MdcError` without one, or if the answer is no."""
    if yes:
        say(text)
        return
    if not on_terminal():
        raise MdcError(f"{text}\nTo start it anyway, add --yes")
    say(text)
    if not typer.confirm("Start it anyway?", err=True):
        raise MdcError("not started")


def on_terminal() -> bool:
    """Whether there is a user to ask."""
    return sys.stdin.isatty() and people.is_terminal


def as_options(changes: Mapping[str, Any], option: str = "--set") -> list[str]:
    """Settings as command-line options: `--set network.width=32`."""
    flat = [
        (f"{name}.{inner}", value)
        for name, values in changes.items()
        for inner, value in (values.items() if isinstance(values, Mapping) else [("", values)])
    ]
    return [f"{option} {name.removesuffix('.')}={_plain(value)}" for name, value in flat]


def _method(config: CondenseConfig) -> str:
    """The method's name; see `mdc_core.config.defaults.METHODS`."""
    return "mdc" if config.method == "idc" and config.subset_loss == "mls" else config.method


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _data_text(facts: DataFacts) -> str:
    """The data set on one line."""
    images = "" if facts.images is None else f", {facts.images} training images"
    tests = ""
    if facts.test_images is not None:
        held_out = " (held out, as there is no test split)" if facts.held_out else ""
        tests = f" and {facts.test_images} test images{held_out}"
    own = ""
    if facts.own_side is not None and facts.own_side != facts.image_size:
        own = f" (resized from {facts.own_side})"
    colours = "grey" if facts.channels == 1 else "colour"
    ignored = f", files or folders ignored: {facts.ignored}" if facts.ignored else ""
    return (
        f"{facts.name}: {len(facts.classes)} classes{images}{tests}, "
        f"{facts.image_size} pixels{own}, {colours}{ignored}"
    )
