"""Choose the schedule of a run with a given time, after a short benchmark and a pilot run on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mdc_cli.condensing import Planned, machine
from mdc_cli.output import say
from mdc_core.config.minutes import Machine, Pace, Size, Timed, Wanted, in_time, pace_of, size_of
from mdc_core.config.settings import CondenseConfig
from mdc_core.config.shorten import with_changes

if TYPE_CHECKING:  # torch is loaded by the commands that need it, so that --help is quick
    from mdc_core.data.real_set import DataSet

_PILOT_SHARE, _LEAST_PILOT, _MOST_PILOT = 0.05, 0.5, 10.0
"""Share of the time for each pilot run, and its bounds in seconds."""


def clock() -> float:
    """When this process started computing, on the clock of `time.monotonic`: this counts towards the run's time."""
    return time.monotonic() - time.process_time()


def measured(planned: Planned, device: str, data: DataSet | None, begun: float) -> tuple[Planned, Machine]:
    """Measure this machine, and set the schedule of a run that is planned by time.

    Without data, as in a dry run, only the benchmark decides.
    """
    choice, facts = planned.choice, planned.facts
    if choice.minutes is None:
        return planned, machine(planned.config, facts, device)
    between = {"network": {"width": choice.widths[len(choice.widths) // 2]}}
    here = machine(with_changes(planned.config, between), facts, device)
    total = 60 * choice.minutes
    ratio = Pace(1.0, 1.0)
    # A benchmark in a new process, beside other work, may be far too slow: the pilot run decides.
    has_pilot = data is not None
    timed = _timed(planned, total - (time.monotonic() - begun), here, ratio, or_longer=has_pilot)
    piloted: Size | None = None
    while data is not None and size_of(timed.condense) != piloted:
        # A pilot's ratio is assumed for cheaper networks, then measured there, but never used for more expensive ones.
        piloted = size_of(timed.condense)
        ratio = _ratio(planned, timed.condense, data, device, here)
        timed = _timed(planned, total - (time.monotonic() - begun), here, ratio, piloted)
    return replace(planned, choice=replace(choice, condense=timed.condense), timed=timed), here


def _timed(
    planned: Planned,
    seconds: float,
    here: Machine,
    ratio: Pace,
    largest: Size | None = None,
    *,
    or_longer: bool = False,
) -> Timed:
    choice = planned.choice
    wanted = Wanted(planned.config, planned.facts, choice.widths, choice.may_shrink, largest)
    return in_time(
        wanted, seconds, here, _scaled(ratio), or_longer=or_longer or planned.choice.is_default_time
    )


def _scaled(ratio: Pace) -> Callable[[Pace], Pace]:
    return lambda pace: Pace(pace.sample * ratio.sample, pace.update * ratio.update)


def _ratio(planned: Planned, config: CondenseConfig, data: DataSet, device: str, here: Machine) -> Pace:
    """The measured pace of a pilot run, relative to the expected pace."""
    from mdc_core.condensation.pilot import pilot

    assert planned.choice.minutes is not None
    say(f"Running a pilot of {config.network.label()} on the data")
    seconds = min(_MOST_PILOT, max(_LEAST_PILOT, _PILOT_SHARE * 60 * planned.choice.minutes))
    took, expected = pilot(config, data.train, device, seconds), pace_of(config, planned.facts, here)
    return Pace(took.sample / expected.sample, took.update / expected.update)
