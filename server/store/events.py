"""Read the events of jobs, which `server.store.jobs` writes. A job's events commit in the order of their ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.store.states import JobState
from server.store.tables import Job, JobEvent


class Head(NamedTuple):
    """State and progress of a job, and the id of its newest event."""

    job_id: str
    state: JobState
    attempt: int
    progress: dict[str, Any] | None
    newest: int


def page(session: Session, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
    """Up to `limit` events of the job after the one with id `after`, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after)
    return list(session.scalars(query.order_by(JobEvent.id).limit(limit)))


def heads(session: Session, job_ids: Collection[str]) -> Sequence[Head]:
    """One entry for each of the jobs that exists, by one query."""
    newest = (
        select(func.coalesce(func.max(JobEvent.id), 0)).where(JobEvent.job_id == Job.id).scalar_subquery()
    )
    query = select(Job.id, Job.state, Job.attempt, Job.progress, newest).where(Job.id.in_(job_ids))
    return [Head(*row) for row in session.execute(query)]


def newer(session: Session, seen: Mapping[str, int]) -> list[JobEvent]:
    """Events of these jobs, oldest first. `seen` maps each job's id to the id of the last event already read."""
    if not seen:
        return []
    query = select(JobEvent).where(JobEvent.job_id.in_(seen), JobEvent.id > min(seen.values()))
    return [event for event in session.scalars(query.order_by(JobEvent.id)) if event.id > seen[event.job_id]]
