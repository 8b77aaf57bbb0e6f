"""A pilot: as long as it may be, and right about the run that it stands for."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from mdc_core.condensation.condense import condense, prepare
from mdc_core.condensation.pilot import pilot
from mdc_core.condensation.pool import MemoryPools
from mdc_core.config.defaults import choose
from mdc_core.config.presets import NAMED
from mdc_core.config.shorten import with_changes
from mdc_core.data.load import load_named


def test_a_pilot_is_of_the_pace_of_the_run_and_short() -> None:
    torch.set_num_threads(1)
    real = load_named("digits", Path()).train
    config = choose(NAMED["digits"], None, {"ipc": 2}, is_own=False).condense
    begun = time.perf_counter()
    pace = pilot(config, real, "cpu", 0.6)
    assert time.perf_counter() - begun < 5
    config = with_changes(config, {"pool": 1, "pool_samples": 6400, "outer_loops": 1, "inner_iterations": 20})
    pools = MemoryPools()
    begun = time.perf_counter()
    list(prepare(config, real, pools=pools))
    trained = time.perf_counter() - begun
    matched = sum(step.seconds for step in condense(config, real, pools=pools))
    # Others may be computing on the machine: an order of magnitude shows that units and counts are right.
    assert trained / 3 < pace.sample * 6400 < 3 * trained
    assert matched / 3 < pace.update * 20 < 3 * matched


def test_a_pilot_of_a_slow_run_takes_few_steps() -> None:
    """However little time there is, one step to warm up and one to measure, or only one where that takes all of it."""
    torch.set_num_threads(1)
    real = load_named("digits", Path()).train
    config = choose(NAMED["digits"], None, {"ipc": 2}, is_own=False).condense
    begun = time.perf_counter()
    pace = pilot(config, real, "cpu", 1e-6)
    assert time.perf_counter() - begun < 3
    assert pace.sample > 0
    assert pace.update > 0
