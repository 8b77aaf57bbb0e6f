"""Whether a job can run at all: what it will take, against the largest worker that is there."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from mdc_core.config import CondenseConfig, DataFacts, EvaluateConfig
from mdc_core.estimate import Speed, estimate, what_to_lower
from server.problems import FieldError, Problem
from server.store import workers


def admit(
    session: Session, condense: CondenseConfig, evaluate: EvaluateConfig, facts: DataFacts
) -> dict[str, Any]:
    """What the job is expected to take, as JSON; without seconds while no worker is known.

    Raises:
        Problem: 422 `does-not-fit` when it needs more memory than the largest live worker has.
    """
    worker = workers.largest(session)
    speed = None if worker is None else Speed(worker.flops, worker.bandwidth, worker.start)
    limit = None if worker is None else worker.memory_bytes
    gpu = worker is not None and worker.gpu
    expected = estimate(condense, facts, evaluate, speed=speed, memory_limit=limit, gpu=gpu)
    if limit is not None and expected.memory_bytes > limit:
        lower = what_to_lower(condense, facts, evaluate, limit)
        message = (
            f"the job needs about {_gigabytes(expected.memory_bytes)} of memory, but the largest worker has "
            f"{_gigabytes(limit)}: lower {lower}"
        )
        raise Problem(
            422,
            "does-not-fit",
            message,
            errors=[FieldError(field=lower.partition(",")[0], message=message)],
            extra={"needed_bytes": expected.memory_bytes, "available_bytes": limit},
        )
    return expected.to_dict()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
