"""Queue statistics, for metrics."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.store.states import ENDED, JobState
from server.store.tables import Job


class Depth(NamedTuple):
    """Statistics of the jobs in one state."""

    jobs: int = 0
    oldest: datetime | None = None
    """Submission time of the oldest of them."""
    expired: int = 0
    """Jobs whose lease has expired."""
    interruptions: int = 0
    """Counted interruptions of these jobs, summed up."""


def depths(session: Session, now: datetime) -> dict[JobState, Depth]:
    """Statistics of every state that is not final, by one query."""
    active = set(JobState) - ENDED
    query = (
        select(
            Job.state,
            func.count(),
            func.min(Job.created_at),
            func.count().filter(Job.lease_expires_at < now),
            func.sum(Job.interruptions),
        )
        .where(Job.state.in_(active))
        .group_by(Job.state)
    )
    counted = {
        state: Depth(count, oldest, expired, interruptions)
        for state, count, oldest, expired, interruptions in session.execute(query)
    }
    return {state: counted.get(state, Depth()) for state in JobState if state in active}
