"""What was read and what a run will take, told before it starts; and the question where that is more than a day."""

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
class Outlook:
    """A run that has not begun. Seconds are None while no machine's speed is known."""

    facts: DataFacts
    preset: str
    condense: CondenseConfig
    loops: int
    """Outer loops that are still to be done."""
    seconds: float | None
    seconds_pool: float | None
    """Of the networks of a pool, as if none were there; a part of `seconds`."""
    seconds_per_loop: float | None
    seconds_evaluation: float | None
    memory_bytes: int
    chosen: str | None
    """What was chosen that nobody asked for, and why."""

    def words(self) -> str:
        """What was read, and what it will take, in one line."""
        chosen = f" {self.chosen}." if self.chosen else ""
        return f"{_read(self.facts)}. {self._takes()}.{chosen}"

    def _takes(self) -> str:
        network, ipc = self.condense.network.label(), self.condense.ipc
        config = f"Method {_method(self.condense)}, preset {self.preset}, {network}, ipc {ipc}"
        memory = f"{self.memory_bytes / 1e9:.1f} GB of memory"
        if self.seconds is None or self.seconds_per_loop is None:
            return (
                f"{config}: {self.loops} outer loops, {memory}; how long is not known, as no worker is there"
            )
        pool = f", {duration(self.seconds_pool)} of networks for a pool" if self.seconds_pool else ""
        judging = f" and {duration(self.seconds_evaluation)} of evaluation" if self.seconds_evaluation else ""
        return (
            f"{config}: about {duration(self.seconds)} for {self.loops} outer loops "
            f"({duration(self.seconds_per_loop)} each){pool}{judging}, {memory}"
        )

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "facts": self.facts.model_dump(mode="json"),
            "method": _method(self.condense),
            "preset": self.preset,
            "chosen": self.chosen,
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
        """Whether it is worth a question."""
        return self.seconds is not None and self.seconds > DAY


def warning(outlook: Outlook, options: str, seconds: float) -> str:
    """What to lower, and the options with which the same command takes `seconds`."""
    sides = " a smaller image side (--image-size)," if outlook.facts.own_side is not None else ""
    return (
        f"This takes about {duration(outlook.seconds or 0)}. What shortens it: fewer outer loops, a smaller network,"
        f"{sides} fewer inner iterations; or, in place of preset and schedule, a time: --method feature --minutes 60. "
        f"The same command takes about {duration(seconds)} with: {options}"
    )


def ask(text: str, yes: bool) -> None:
    """Say so, and ask on a terminal whether to go on; `MdcError` without one, or when the answer is no."""
    if yes:
        say(text)
        return
    if not on_terminal():
        raise MdcError(f"{text}\nTo start it as it is, add --yes")
    say(text)
    if not typer.confirm("Start it as it is?", err=True):
        raise MdcError("not started")


def on_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and people.is_terminal


def as_options(changes: Mapping[str, Any], option: str = "--set") -> list[str]:
    """Settings as the command takes them: `--set network.width=32`."""
    flat = [
        (f"{name}.{inner}", value)
        for name, values in changes.items()
        for inner, value in (values.items() if isinstance(values, Mapping) else [("", values)])
    ]
    return [f"{option} {name.removesuffix('.')}={_plain(value)}" for name, value in flat]


def _method(config: CondenseConfig) -> str:
    """The word for what is matched; see `mdc_core.config.defaults.METHODS`."""
    return "mdc" if config.method == "idc" and config.subset_loss == "mls" else config.method


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _read(facts: DataFacts) -> str:
    """The data set in words."""
    images = "" if facts.images is None else f", {facts.images} training images"
    tests = ""
    if facts.test_images is not None:
        held = " (held out, as there is no test split)" if facts.held_out else ""
        tests = f" and {facts.test_images} test images{held}"
    own = ""
    if facts.own_side is not None and facts.own_side != facts.image_size:
        own = f" (of {facts.own_side})"
    colours = "grey" if facts.channels == 1 else "colour"
    ignored = f", files or folders ignored: {facts.ignored}" if facts.ignored else ""
    return (
        f"{facts.name}: {len(facts.classes)} classes{images}{tests}, "
        f"{facts.image_size} pixels{own}, {colours}{ignored}"
    )
