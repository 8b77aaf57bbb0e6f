"""Jobs: callers submit and cancel them, workers claim them under a fence. See `server.store.states`."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, literal, select, update
from sqlalchemy.orm import Session, aliased

from server.store.ids import new_id
from server.store.states import ENDED, HELD, JobState, sources
from server.store.tables import Job, JobEvent, UTCDateTime, utcnow

MAX_ATTEMPTS = 5
"""Interruptions after which a job fails; the default of `requeue`."""

_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}


def submit(
    session: Session,
    *,
    owner_id: str,
    dataset: str,
    name: str,
    condense: dict[str, Any],
    evaluate: dict[str, Any],
    max_runtime_s: int | None = None,
    facts: dict[str, Any] | None = None,
    estimate: dict[str, Any] | None = None,
    minutes: float | None = None,
    chosen: str | None = None,
) -> Job:
    """Add a queued job. Its owner must own the set name: see `server.store.sets.claim_name`."""
    job = Job(
        id=new_id("job"),
        owner_id=owner_id,
        dataset=dataset,
        name=name,
        condense=condense,
        evaluate=evaluate,
        max_runtime_s=max_runtime_s,
        facts=facts,
        estimate=estimate,
        minutes=minutes,
        chosen=chosen,
        state=JobState.QUEUED,
        attempt=0,
    )
    session.add(job)
    session.flush()
    _record(session, job, None)
    return job


def get(session: Session, job_id: str, *, owner_id: str | None = None) -> Job | None:
    """The job; with `owner_id`, only if it belongs to that owner."""
    job = session.get(Job, job_id)
    return job if job is not None and owner_id in (None, job.owner_id) else None


def count_active(session: Session, owner_id: str) -> int:
    """Number of the owner's jobs that have not ended."""
    query = select(func.count()).where(Job.owner_id == owner_id, Job.state.in_(set(JobState) - ENDED))
    return session.scalar(query) or 0


def page(
    session: Session,
    *,
    owner_id: str | None,
    state: JobState | None,
    after: str | None,
    limit: int,
) -> list[Job]:
    """Up to `limit` jobs, newest first, starting below the id `after`."""
    query = select(Job).order_by(Job.id.desc()).limit(limit)
    if owner_id is not None:
        query = query.where(Job.owner_id == owner_id)
    if state is not None:
        query = query.where(Job.state == state)
    if after is not None:
        query = query.where(Job.id < after)
    return list(session.scalars(query))


def move(
    session: Session,
    job_id: str,
    target: JobState,
    *,
    fence: int | None = None,
    expected: Collection[JobState] | None = None,
    detail: str | None = None,
    **values: Any,
) -> Job | None:
    """Change a job's state if `server.store.states` allows it. Returns the job, or None if refused.

    `fence` is the attempt of the worker that asks: the change is refused once another attempt has started. `expected`
    narrows the states to start from. `values` are columns to set in the same statement.
    """
    allowed = sources(target)
    if expected is not None:
        allowed &= frozenset(expected)
    changed = update(Job).where(Job.id == job_id, Job.state.in_(allowed))
    if fence is not None:
        changed = changed.where(Job.attempt == fence)
    job = _update_one(session, changed.values(state=target, **values))
    if job is not None:
        _record(session, job, detail)
    return job


def claim(session: Session, job_id: str | None, owner: str, lease_seconds: float) -> Job | None:
    """Claim a queued job for the worker `owner`. Returns None if there is none.

    Without an id, it takes the oldest job of the API key with the fewest running jobs; among several such keys, that
    of the key whose last claim is longest ago. Only one of several concurrent claims gets the job.
    """
    job_id = job_id or _next(session)
    if job_id is None:
        return None
    now = utcnow()
    return move(
        session,
        job_id,
        JobState.RUNNING,
        detail=f"claimed by {owner}",
        lease_owner=owner,
        lease_expires_at=now + timedelta(seconds=lease_seconds),
        attempt=Job.attempt + 1,
        progress=None,
        progressed_at=now,
        claimed_at=now,
        started_at=func.coalesce(Job.started_at, literal(now, UTCDateTime())),
    )


def _next(session: Session) -> str | None:
    """Id of the next queued job, with its row locked.

    Jobs are not served first come, first served: one key with a hundred jobs would block every other key for days. So
    keys take turns. The fewest running jobs come first, so that several workers are shared out; the oldest last claim
    comes second, so that a single worker alternates between keys.
    """
    waiting = (
        select(Job.owner_id, func.min(Job.id).label("oldest"))
        .where(Job.state == JobState.QUEUED)
        .group_by(Job.owner_id)
        .subquery()
    )
    others = aliased(Job)
    running = select(func.count()).where(others.owner_id == waiting.c.owner_id, others.state.in_(HELD))
    served = select(func.max(others.claimed_at)).where(others.owner_id == waiting.c.owner_id)
    keys_in_order = select(waiting.c.owner_id).order_by(
        running.scalar_subquery(), served.scalar_subquery().nulls_first(), waiting.c.oldest
    )
    for owner_id in session.scalars(keys_in_order).all():
        # Skip a row that a concurrent claim has locked: `move` would wait for it, and then find the job taken.
        oldest = (
            select(Job.id)
            .where(Job.owner_id == owner_id, Job.state == JobState.QUEUED)
            .order_by(Job.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if (job_id := session.scalar(oldest)) is not None:
            return job_id
    return None


def renew(session: Session, job_id: str, attempt: int, lease_seconds: float) -> JobState | None:
    """Renew the lease. Returns the job's state, or None if the lease is lost."""
    job = _write(session, job_id, attempt, lease_expires_at=utcnow() + timedelta(seconds=lease_seconds))
    return None if job is None else job.state


def report(session: Session, job_id: str, attempt: int, progress: dict[str, Any]) -> bool:
    """Store an attempt's progress. Returns False if it no longer holds the job."""
    return _write(session, job_id, attempt, progress=progress, progressed_at=utcnow()) is not None


def save_checkpoint(session: Session, job_id: str, attempt: int, object_key: str, step: int) -> bool:
    """Refer to the checkpoint after outer loop `step`. Returns False if the attempt no longer holds the job."""
    return _write(session, job_id, attempt, checkpoint_key=object_key, checkpoint_step=step) is not None


def requeue(
    session: Session,
    job_id: str,
    attempt: int,
    reason: str,
    max_attempts: int = MAX_ATTEMPTS,
    *,
    counted: bool = True,
) -> JobState | None:
    """Queue an interrupted job again, fail it after `max_attempts`, or cancel it if that was requested.

    `counted` is false for interruptions that are not the job's fault, such as a worker's shutdown. Returns the new
    state, or None if the attempt no longer holds the job.
    """
    job = held(session, job_id, attempt)
    if job is None:
        return None
    if job.state is JobState.CANCELING:
        return JobState.CANCELED if cancel_done(session, job_id, attempt) else None
    interruptions = job.interruptions + counted
    if interruptions >= max_attempts:
        detail = f"interrupted {interruptions} times, the limit; last reason: {reason}"
        return JobState.FAILED if fail(session, job_id, attempt, "too-many-attempts", detail) else None
    moved = move(
        session,
        job_id,
        JobState.QUEUED,
        fence=attempt,
        detail=reason,
        interruptions=interruptions,
        runtime_s=running_seconds(job, utcnow()),
        **_NO_LEASE,
    )
    return None if moved is None else moved.state


def running_seconds(job: Job, now: datetime) -> float:
    """Seconds that a held job has run, all attempts together. A vanished worker counts until its lease ended."""
    if job.claimed_at is None or job.lease_expires_at is None:
        return job.runtime_s  # claimed by a release that did not record the time
    latest = min(now, job.lease_expires_at) - job.claimed_at
    return job.runtime_s + max(0.0, latest.total_seconds())


def fail(session: Session, job_id: str, attempt: int, code: str, detail: str) -> bool:
    """Fail the job, with a reason for the caller. Returns False if the attempt no longer holds the job."""
    ended = _end(session, job_id, JobState.FAILED, attempt, detail, error_code=code, error_detail=detail)
    return ended is not None


def succeed(
    session: Session, job_id: str, attempt: int, version: int, advice: str | None = None
) -> Job | None:
    """End the job as succeeded, with the version of its set. Returns None if it is no longer running.

    The event also shows `advice` to the caller.
    """
    detail = f"version {version}" if advice is None else f"version {version}. {advice}"
    return _end(session, job_id, JobState.SUCCEEDED, attempt, detail, set_version=version)


def cancel(session: Session, job_id: str) -> Job | None:
    """Cancel a queued job at once, a running one by its worker. Returns None if it has ended already."""
    session.get(Job, job_id, with_for_update=True)  # else a requeue could slip in between the two moves
    queued = move(
        session,
        job_id,
        JobState.CANCELED,
        expected={JobState.QUEUED},
        detail="canceled before it ran",
        ended_at=utcnow(),
    )
    return queued or move(session, job_id, JobState.CANCELING, detail="cancellation requested")


def cancel_done(session: Session, job_id: str, attempt: int) -> bool:
    """Record that the worker has stopped a canceled job. Returns False if the attempt no longer holds it."""
    return _end(session, job_id, JobState.CANCELED, attempt, "stopped by its worker") is not None


def expired(session: Session, now: datetime) -> list[Job]:
    """Jobs whose lease has expired."""
    query = select(Job).where(Job.state.in_(HELD), Job.lease_expires_at < now).order_by(Job.id)
    return list(session.scalars(query))


def held(session: Session, job_id: str, attempt: int) -> Job | None:
    """The job if `attempt` holds it, locked until the transaction ends."""
    query = select(Job).where(*_fence(job_id, attempt)).with_for_update()
    return session.scalar(query, execution_options={"populate_existing": True})


def state_of(session: Session, job_id: str, attempt: int) -> JobState | None:
    """The job's state if `attempt` is its latest one, else None."""
    return session.scalar(select(Job.state).where(Job.id == job_id, Job.attempt == attempt))


def _fence(job_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    """Conditions under which an attempt may write to a job."""
    return Job.id == job_id, Job.attempt == attempt, Job.state.in_(HELD)


def _write(session: Session, job_id: str, attempt: int, **values: Any) -> Job | None:
    """Set columns of a job that `attempt` holds, without changing its state."""
    return _update_one(session, update(Job).where(*_fence(job_id, attempt)).values(**values))


def _end(
    session: Session, job_id: str, target: JobState, attempt: int, detail: str, **values: Any
) -> Job | None:
    return move(
        session,
        job_id,
        target,
        fence=attempt,
        expected=HELD,
        detail=detail,
        ended_at=utcnow(),
        **_NO_LEASE,
        **values,
    )


def _update_one(session: Session, statement: Any) -> Job | None:
    """Run a conditional UPDATE. Returns the changed row, if any."""
    session.flush()
    job: Job | None = session.scalar(
        statement.returning(Job),
        execution_options={"populate_existing": True, "synchronize_session": False},
    )
    return job


def _record(session: Session, job: Job, detail: str | None) -> None:
    session.add(JobEvent(job_id=job.id, state=job.state.value, attempt=job.attempt, detail=detail))
    session.flush()
