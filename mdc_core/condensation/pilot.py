"""What a run's parts take on this machine right now: by doing a little of each, on the data themselves.

A calibration knows a machine in general; a pilot knows the run that is planned, and what else the machine is doing.
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
_MOST_STARTING = 10
"""Starting takes at most all but so small a part of a training."""


def pilot(config: CondenseConfig, real: RealSet, device: torch.device | str, seconds: float) -> Pace:
    """The pace of feature matching with that network and these batches, measured for about so many seconds.

    Half of the time goes to training a network, half to updates of the tiles, after a few of either to warm up. Nothing
    is kept.
    """
    few = config.batch_network * _WARM_UP_STEPS
    first = _training(config, real, device, few)
    # A GPU's first training waits for compilers, and each of them records a step before it repeats it.
    starting = 0.0 if torch.device(device).type == "cpu" else _training(config, real, device, few)
    sample = (starting or first) / few
    for _ in range(_TRIES):  # the first steps are slow, and tell of less than there is time for
        samples = max(2 * few, int(seconds / 2 / sample))
        taken = _training(config, real, device, samples)
        sample = max(taken - starting, taken / _MOST_STARTING) / samples
        if taken > seconds / 4:
            break
    return Pace(sample=sample, update=_updating(config, real, device, few, seconds / 2))


def _training(config: CondenseConfig, real: RealSet, device: torch.device | str, samples: int) -> float:
    """Seconds of one network's training."""
    begun = time.perf_counter()
    for _ in prepare(
        with_changes(config, {"pool": 1, "pool_samples": samples}), real, device, pools=MemoryPools()
    ):
        pass
    return time.perf_counter() - begun


def _updating(
    config: CondenseConfig, real: RealSet, device: torch.device | str, samples: int, seconds: float
) -> float:
    """Mean seconds of an update; the first one, slow in a new process, counts only where a second takes too long."""
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
