"""The queue in numbers, for those who watch over it."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.store.states import ENDED, JobState
from server.store.tables import Job


class Depth(NamedTuple):
    """The jobs in a state that others follow."""

    jobs: int = 0
    oldest: datetime | None = None
    """When the first of them was submitted."""
    expired: int = 0
    """Those whose worker has not renewed its lease in time."""
    interruptions: int = 0
    """Attempts of these jobs that went wrong by themselves."""


def depths(session: Session, now: datetime) -> dict[JobState, Depth]:
    """Of every state that is no end, by one query over the jobs that have not ended."""
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
    found = {
        state: Depth(count, oldest, expired, interruptions)
        for state, count, oldest, expired, interruptions in session.execute(query)
    }
    return {state: found.get(state, Depth()) for state in JobState if state in active}
