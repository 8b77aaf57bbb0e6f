"""Jobs: submitted and canceled by a caller, claimed and fenced by a worker. See `server.store.states`."""

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
"""Claims after which an interrupted job fails, unless the caller of `requeue` says otherwise."""

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
    """Add a queued job. The set name must be the owner's: see `server.store.sets.claim_name`."""
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
    """The job; with `owner_id` only when it is that owner's."""
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
    """Up to `limit` jobs that are older than the one with id `after`, newest first."""
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
    """Change the state, and nothing when the job is not in a state that may change to `target`.

    `fence` is the attempt of the worker that asks: the change is refused when another attempt has begun.
    `expected` narrows the states it may come from; `values` are columns set with it. Returns the job, or
    None when refused.
    """
    allowed = sources(target)
    if expected is not None:
        allowed &= frozenset(expected)
    changed = update(Job).where(Job.id == job_id, Job.state.in_(allowed))
    if fence is not None:
        changed = changed.where(Job.attempt == fence)
    job = _returned(session, changed.values(state=target, **values))
    if job is not None:
        _record(session, job, detail)
    return job


def claim(session: Session, job_id: str | None, owner: str, lease_seconds: float) -> Job | None:
    """Take a queued job for the worker `owner`; None when there is none.

    Without an id: the oldest job of the caller who has the fewest jobs running, and among those of the one who has
    waited longest since a job of theirs was claimed. Of any number of concurrent claims one gets the job.
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
    """Id of the queued job whose turn it is, its row locked."""
    waiting = (
        select(Job.owner_id, func.min(Job.id).label("oldest"))
        .where(Job.state == JobState.QUEUED)
        .group_by(Job.owner_id)
        .subquery()
    )
    others = aliased(Job)
    running = select(func.count()).where(others.owner_id == waiting.c.owner_id, others.state.in_(HELD))
    served = select(func.max(others.claimed_at)).where(others.owner_id == waiting.c.owner_id)
    turns = select(waiting.c.owner_id).order_by(
        running.scalar_subquery(), served.scalar_subquery().nulls_first(), waiting.c.oldest
    )
    for owner_id in session.scalars(turns).all():
        # A row that a neighbour has locked is passed over: `move` would wait for it.
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
    """Prolong the lease; returns the state, so that a cancellation is seen, or None when it is lost."""
    job = _write(session, job_id, attempt, lease_expires_at=utcnow() + timedelta(seconds=lease_seconds))
    return None if job is None else job.state


def report(session: Session, job_id: str, attempt: int, progress: dict[str, Any]) -> bool:
    """Store the progress of an attempt; False when it no longer holds the job."""
    return _write(session, job_id, attempt, progress=progress, progressed_at=utcnow()) is not None


def save_checkpoint(session: Session, job_id: str, attempt: int, object_key: str, step: int) -> bool:
    """Make the object the job's checkpoint, after outer loop `step`; False when the job is no longer held."""
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
    """Give back an interrupted job: queued again, failed after `max_attempts`, or canceled if so asked.

    An interruption that is not the job's fault, such as its worker's shut-down, is not `counted`. Returns the
    new state, or None when the attempt no longer holds the job.
    """
    job = held(session, job_id, attempt)
    if job is None:
        return None
    if job.state is JobState.CANCELING:
        return JobState.CANCELED if cancel_done(session, job_id, attempt) else None
    interruptions = job.interruptions + counted
    if interruptions >= max_attempts:
        detail = f"interrupted {interruptions} times, which is the limit; the last time: {reason}"
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
    """How long a held job has run, all attempts together; that of a vanished worker until its lease ended."""
    if job.claimed_at is None or job.lease_expires_at is None:
        return job.runtime_s  # claimed by a release that did not note the time
    latest = min(now, job.lease_expires_at) - job.claimed_at
    return job.runtime_s + max(0.0, latest.total_seconds())


def fail(session: Session, job_id: str, attempt: int, code: str, detail: str) -> bool:
    """End the job as failed, for a reason that a caller can read; False when it is no longer held."""
    ended = _end(session, job_id, JobState.FAILED, attempt, detail, error_code=code, error_detail=detail)
    return ended is not None


def succeed(
    session: Session, job_id: str, attempt: int, version: int, advice: str | None = None
) -> Job | None:
    """End the job as succeeded with that version of its set; None when it is no longer running.

    `advice` for the caller is told with the event.
    """
    detail = f"version {version}" if advice is None else f"version {version}. {advice}"
    return _end(session, job_id, JobState.SUCCEEDED, attempt, detail, set_version=version)


def cancel(session: Session, job_id: str) -> Job | None:
    """Ask a job to stop: at once when queued, else by its worker. None when it has ended already."""
    session.get(Job, job_id, with_for_update=True)  # else a requeue could pass between the two moves
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
    """End a job that was asked to stop, as its worker has stopped it; False when it is no longer held."""
    return _end(session, job_id, JobState.CANCELED, attempt, "stopped by its worker") is not None


def expired(session: Session, now: datetime) -> list[Job]:
    """Jobs whose worker has not renewed its lease in time."""
    query = select(Job).where(Job.state.in_(HELD), Job.lease_expires_at < now).order_by(Job.id)
    return list(session.scalars(query))


def held(session: Session, job_id: str, attempt: int) -> Job | None:
    """The job, locked until the transaction ends, when `attempt` holds it."""
    query = select(Job).where(*_fence(job_id, attempt)).with_for_update()
    return session.scalar(query, execution_options={"populate_existing": True})


def state_of(session: Session, job_id: str, attempt: int) -> JobState | None:
    """The job's state while `attempt` is its latest, else None; only reads."""
    return session.scalar(select(Job.state).where(Job.id == job_id, Job.attempt == attempt))


def _fence(job_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    """What must be true of a job that a worker writes to."""
    return Job.id == job_id, Job.attempt == attempt, Job.state.in_(HELD)


def _write(session: Session, job_id: str, attempt: int, **values: Any) -> Job | None:
    """Set columns of a job that `attempt` holds; its state stays."""
    return _returned(session, update(Job).where(*_fence(job_id, attempt)).values(**values))


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


def _returned(session: Session, statement: Any) -> Job | None:
    """The row that a conditional UPDATE has changed."""
    session.flush()
    job: Job | None = session.scalar(
        statement.returning(Job),
        execution_options={"populate_existing": True, "synchronize_session": False},
    )
    return job


def _record(session: Session, job: Job, detail: str | None) -> None:
    session.add(JobEvent(job_id=job.id, state=job.state.value, attempt=job.attempt, detail=detail))
    session.flush()
