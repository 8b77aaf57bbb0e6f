"""A run of a given time: its schedule, by a calibration and a pilot of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mdc_cli.condensing import Planned, machine
from mdc_cli.output import say
from mdc_core.config.minutes import Machine, Pace, Timed, Wanted, in_time, pace_of
from mdc_core.config.settings import CondenseConfig
from mdc_core.config.shorten import with_changes

if TYPE_CHECKING:  # torch is loaded by the commands that need it, so that --help is quick
    from mdc_core.data.real_set import DataSet

_PILOT_SHARE, _LEAST_PILOT, _MOST_PILOT = 0.05, 0.5, 10.0
"""Of the time, for each pilot, and its seconds."""


def clock() -> float:
    """When this process began, by `time.monotonic`: what it has computed so far belongs to a run's time too."""
    return time.monotonic() - time.process_time()


def measured(planned: Planned, device: str, data: DataSet | None, begun: float) -> tuple[Planned, Machine]:
    """This machine, and the run with the schedule that its time decides, where it is not given.

    Without data, as in a dry run, that goes by the calibration alone.
    """
    choice, facts = planned.choice, planned.facts
    if choice.minutes is None:
        return planned, machine(planned.config, facts, device)
    between = {"network": {"width": choice.widths[len(choice.widths) // 2]}}
    here = machine(with_changes(planned.config, between), facts, device)
    total = 60 * choice.minutes
    ratio = Pace(1.0, 1.0)
    # A calibration in a process that has just begun, beside other work, may be far too slow: a pilot decides.
    looks_on = data is not None
    found = _timed(planned, total - (time.monotonic() - begun), here, ratio, or_longer=looks_on)
    piloted: int | None = None
    while data is not None and found.condense.network.width != piloted:
        # What is found at one width is believed of narrower ones, and is looked at there, but of no wider ones.
        piloted = found.condense.network.width
        ratio = _ratio(planned, found.condense, data, device, here)
        found = _timed(planned, total - (time.monotonic() - begun), here, ratio, piloted)
    return replace(planned, choice=replace(choice, condense=found.condense), timed=found), here


def _timed(
    planned: Planned,
    seconds: float,
    here: Machine,
    ratio: Pace,
    widest: int | None = None,
    *,
    or_longer: bool = False,
) -> Timed:
    wanted = Wanted(planned.config, planned.facts, planned.choice.widths, widest)
    return in_time(
        wanted, seconds, here, _scaled(ratio), or_longer=or_longer or planned.choice.is_default_time
    )


def _scaled(ratio: Pace) -> Callable[[Pace], Pace]:
    return lambda pace: Pace(pace.sample * ratio.sample, pace.update * ratio.update)


def _ratio(planned: Planned, config: CondenseConfig, data: DataSet, device: str, here: Machine) -> Pace:
    """What a pilot takes, in what is expected."""
    from mdc_core.condensation.pilot import pilot

    assert planned.choice.minutes is not None
    say(f"Trying {config.network.label()} on the data")
    seconds = min(_MOST_PILOT, max(_LEAST_PILOT, _PILOT_SHARE * 60 * planned.choice.minutes))
    took, expected = pilot(config, data.train, device, seconds), pace_of(config, planned.facts, here)
    return Pace(took.sample / expected.sample, took.update / expected.update)
