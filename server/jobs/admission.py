"""Admission: check a job's estimate against the largest live worker and the operator's limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from mdc_core.config.estimate import Estimate, Speed, estimate, what_to_lower
from mdc_core.config.minutes import Machine
from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig
from mdc_core.config.shorten import Run, Shorter, duration
from server.store import workers
from server.web.problems import FieldError, Problem

HOUR = 3600.0


@dataclass(frozen=True)
class Admitted:
    """The estimate of an admitted job; without seconds if no worker is registered."""

    estimate: Estimate
    run: Run | None
    """On the largest live worker, if there is one."""

    def shorter(self) -> Shorter | None:
        """Changes that bring it down to about an hour; None if it takes no longer, or if that is unknown."""
        if self.run is None or (self.estimate.seconds_total or 0) <= HOUR:
            return None
        return self.run.shorter(HOUR)


def admit(
    session: Session,
    preset: str,
    condense: CondenseConfig,
    evaluate: EvaluateConfig,
    facts: DataFacts,
    most_seconds: float | None,
) -> Admitted:
    """Estimate the job on the largest live worker.

    Raises:
        Problem: 422 `does-not-fit` if it needs more memory than that worker has, `takes-too-long` if it would take
            more than `most_seconds`.
    """
    machine = largest(session)
    speed = None if machine is None else machine.speed
    limit = None if machine is None else machine.memory_bytes
    gpu = machine is not None and machine.gpu
    expected = estimate(condense, facts, evaluate, speed=speed, memory_limit=limit, gpu=gpu)
    if limit is not None and expected.memory_bytes > limit:
        raise _does_not_fit(expected.memory_bytes, limit, what_to_lower(condense, facts, evaluate, limit))
    run = None if speed is None else Run(preset, condense, facts, evaluate, speed)
    seconds = expected.seconds_total or 0.0
    if run is not None and most_seconds is not None and seconds > most_seconds:
        raise _takes_too_long(seconds, most_seconds, run.shorter(most_seconds))
    return Admitted(expected, run)


def largest(session: Session) -> Machine | None:
    """The largest live worker; None if there is none."""
    worker = workers.largest(session)
    if worker is None:
        return None
    return Machine(Speed(worker.flops, worker.bandwidth, worker.start), worker.memory_bytes, worker.gpu)


def _does_not_fit(needed: int, limit: int, lower: str) -> Problem:
    message = (
        f"the job needs about {_gigabytes(needed)} of memory, but the largest worker has "
        f"{_gigabytes(limit)}: lower {lower}"
    )
    return Problem(
        422,
        "does-not-fit",
        message,
        errors=[FieldError(field=lower.partition(",")[0], message=message)],
        extra={"needed_bytes": needed, "available_bytes": limit},
    )


def _takes_too_long(seconds: float, most: float, less: Shorter) -> Problem:
    changes: Mapping[str, Any] = {
        "condense": less.condense,
        "evaluate": less.evaluate,
        "image_size": less.image_size,
        "preset": less.preset,
    }
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in changes.items() if value)
    message = (
        f"the job would take about {duration(seconds)} on the largest worker, but at most {duration(most)} are "
        f"accepted here; about {duration(less.seconds)} with: {told}"
    )
    field = "condense.outer_loops" if less.condense else "evaluate.epochs"
    return Problem(
        422,
        "takes-too-long",
        message,
        errors=[FieldError(field=field, message=message)],
        extra={"expected_seconds": seconds, "accepted_seconds": most},
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
