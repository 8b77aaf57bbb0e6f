"""How long the parts of a run take on this machine right now, by running a little of each on the actual data.

A calibration measures a machine in general. A pilot measures the planned run, under the machine's present load.
"""

from __future__ import annotations

import time
from itertools import islice

import torch

from mdc_core.condensation.condense import condense, prepare
from mdc_core.condensation.pool import MemoryPools
from mdc_core.config.minutes import Pace
from mdc_core.config.settings import CondenseConfig
from mdc_core.config.shorten import with_changes
from mdc_core.data.real_set import RealSet

_WARM_UP_STEPS = 2
_MOST_UPDATES = 1000
_TRIES = 3
_LEAST_TRAINING_SHARE = 10
"""At least 1 / 10 of a measured time counts as training, however long starting took."""


def pilot(config: CondenseConfig, real: RealSet, device: torch.device | str, seconds: float) -> Pace:
    """The pace of feature matching with this configuration, measured for about `seconds` seconds.

    Half of the time goes to training a network, half to tile updates, after a short warm-up of each. The results are
    discarded.
    """
    few = config.batch_network * _WARM_UP_STEPS
    first = _training(config, real, device, few)
    # On a GPU the first training waits for compilers, and every training records its step before replaying it. A second
    # short training thus measures what starting takes.
    starting = 0.0 if torch.device(device).type == "cpu" else _training(config, real, device, few)
    sample = (starting or first) / few
    for _ in range(_TRIES):  # the first steps are slow, so the first guess of how many fit is too low
        samples = max(2 * few, int(seconds / 2 / sample))
        taken = _training(config, real, device, samples)
        sample = max(taken - starting, taken / _LEAST_TRAINING_SHARE) / samples
        if taken > seconds / 4:
            break
    return Pace(sample=sample, update=_updating(config, real, device, few, seconds / 2))


def _training(config: CondenseConfig, real: RealSet, device: torch.device | str, samples: int) -> float:
    """Seconds that training one network on `samples` images takes."""
    begun = time.perf_counter()
    for _ in prepare(
        with_changes(config, {"pool": 1, "pool_samples": samples}), real, device, pools=MemoryPools()
    ):
        pass
    return time.perf_counter() - begun


def _updating(
    config: CondenseConfig, real: RealSet, device: torch.device | str, samples: int, seconds: float
) -> float:
    """Mean seconds of an update. The first, slow in a new process, counts only if there is no time for another."""
    schedule = {
        "pool": 1,
        "pool_samples": samples,
        "outer_loops": _MOST_UPDATES,
        "inner_iterations": 1,
    }
    steps = condense(with_changes(config, schedule), real, device)
    first = next(steps).seconds
    if first > 4 * max(seconds, 1.0):
        return first
    taken: list[float] = []
    for step in islice(steps, _MOST_UPDATES - 1):
        taken.append(step.seconds)
        if sum(taken) >= seconds:
            break
    return sum(taken) / len(taken)
