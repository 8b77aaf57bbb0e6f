"""The schedule of a given time: a calibration proposes, a pilot decides."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

import mdc_core.condensation.pilot
import mdc_core.training.calibrate
from mdc_cli.condensing import plan, tell
from mdc_cli.timing import measured
from mdc_core.config.estimate import Speed
from mdc_core.config.minutes import Pace, pace_of
from mdc_core.config.settings import CondenseConfig

DATA: Any = SimpleNamespace(train=None)


@pytest.fixture
def piloted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths that are piloted on a fast machine, which turns out to be ten times slower."""
    widths: list[int] = []

    def slow(config: CondenseConfig, *_: object) -> Pace:
        widths.append(config.network.width)
        return Pace(2e-5 * config.network.width, 1e-4 * config.network.width)

    monkeypatch.setattr(mdc_core.condensation.pilot, "pilot", slow)
    monkeypatch.setattr(mdc_core.training.calibrate, "calibrate", lambda *_: Speed(2e12, 2.5e10, 1e-5))
    return widths


RUNG = 1 / 1.13
"""What is left of a time, at the least, where samples are rounded down to a rung."""


def test_a_pilot_goes_before_the_calibration(piloted: list[int]) -> None:
    planned = plan("digits", None, None, {}, 3)
    told, here = measured(planned, "cpu", None, time.monotonic())
    assert (told.config.network.width, piloted) == (128, [])
    assert told.timed is not None
    assert told.timed.pace.sample == pytest.approx(pace_of(told.config, planned.facts, here).sample, rel=1e-3)
    found, _ = measured(planned, "cpu", DATA, time.monotonic())
    assert found.timed is not None
    assert piloted[0] == 128
    assert piloted[-1] == found.config.network.width == 32
    assert piloted == sorted(piloted, reverse=True)
    pace = Pace(2e-5 * piloted[-1], 1e-4 * piloted[-1])
    assert found.timed.pace.sample == pytest.approx(pace.sample, rel=0.02)
    assert found.timed.pace.update == pytest.approx(pace.update, rel=0.02)
    spent = found.config.pool * found.config.pool_samples * pace.sample + 300 * pace.update
    assert RUNG * 0.95 * 180 <= spent <= 0.95 * 180
    assert found.config == found.timed.condense


def test_what_is_spent_already_belongs_to_the_time(piloted: list[int]) -> None:
    planned = plan("digits", None, None, {"network": {"width": 32}}, 3)
    found, _ = measured(planned, "cpu", DATA, time.monotonic() - 80)
    assert piloted == [32]
    assert found.timed is not None
    assert RUNG * 0.95 * 100 <= found.timed.seconds <= 0.95 * 100


def test_a_schedule_that_is_given_is_left_alone(piloted: list[int]) -> None:
    planned = plan("digits", None, None, {"outer_loops": 3})
    assert measured(planned, "cpu", DATA, time.monotonic())[0] == planned
    assert piloted == []


def test_a_width_that_was_found_too_slow_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast narrower networks are found to be."""
    widths: list[int] = []

    def slow_where_wide(config: CondenseConfig, *_: object) -> Pace:
        widths.append(config.network.width)
        assert len(widths) < 5
        return Pace(1e-2, 1e-2) if config.network.width == 128 else Pace(1e-7, 1e-7)

    monkeypatch.setattr(mdc_core.condensation.pilot, "pilot", slow_where_wide)
    monkeypatch.setattr(mdc_core.training.calibrate, "calibrate", lambda *_: Speed(2e12, 2.5e10, 1e-5))
    found, _ = measured(plan("digits", None, None, {}, 3), "cpu", DATA, time.monotonic())
    assert widths[0] == 128
    assert found.config.network.width < 128
    assert found.timed is not None
    assert (
        f"; networks of width {2 * found.config.network.width} would be trained too little"
        in found.timed.chosen
    )


def test_too_few_updates_are_a_warning_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to ask for; and a field of the JSON."""
    monkeypatch.setattr(mdc_core.training.calibrate, "calibrate", lambda *_: Speed(2e9, 1e8, 1e-2))
    planned, here = measured(plan("digits", None, None, {}, 0.3), "cpu", None, time.monotonic())
    assert planned.config.network.width == 16
    summary = tell(planned, here, None, True, False)
    updates = planned.config.outer_loops * planned.config.inner_iterations
    assert updates < 50
    told = " ".join(capsys.readouterr().err.split())
    assert f"Warning: {updates} updates are too few for images of 8 pixels" in told
    assert "Ask for 1 minute, or a smaller ipc." in told
    assert summary.to_dict()["warning"] == summary.warning
    enough, here = measured(plan("digits", None, None, {}, 1), "cpu", None, time.monotonic())
    assert tell(enough, here, None, True, False).warning is None
    assert "Warning" not in capsys.readouterr().err
