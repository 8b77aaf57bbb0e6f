"""Condensed sets: a name, its versions, and the transaction that publishes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, select, update
from sqlalchemy.orm import Session, undefer

from server.store import jobs
from server.store.db import insert_new
from server.store.states import JobState
from server.store.tables import CondensedSet, SetName


def claim_name(session: Session, name: str, owner_id: str) -> bool:
    """Make the name the owner's, if it is nobody's yet; False when it is another's."""
    insert_new(session, SetName, name=name, owner_id=owner_id)
    return session.scalar(select(SetName.owner_id).where(SetName.name == name)) == owner_id


def publish(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    object_key: str,
    object_bytes: int,
    master_key: str,
    build_manifest: Callable[[str, int], dict[str, Any]],
) -> CondensedSet | None:
    """Add the job's result as the next version of its set, and end the job as succeeded.

    `build_manifest` is called with the set's name and the version. Both objects must be stored already.
    None when `attempt` no longer holds the job, or when it was asked to stop: then nothing is changed.
    """
    job = jobs.held(session, job_id, attempt)
    if job is None or job.state is not JobState.RUNNING:
        return None
    # The row of the name stays locked until the commit, so that versions have neither gaps nor doubles.
    version = session.scalars(
        update(SetName)
        .where(SetName.name == job.name)
        .values(latest_version=SetName.latest_version + 1)
        .returning(SetName.latest_version),
        execution_options={"synchronize_session": False},
    ).one()
    published = CondensedSet(
        name=job.name,
        version=version,
        job_id=job.id,
        owner_id=job.owner_id,
        object_key=object_key,
        object_bytes=object_bytes,
        master_key=master_key,
        manifest=build_manifest(job.name, version),
    )
    session.add(published)
    session.flush()
    jobs.succeed(session, job_id, attempt, version)
    return published


def get(session: Session, name: str, version: int | None = None) -> CondensedSet | None:
    """A version of a set with its manifest, the latest when none is given."""
    query = select(CondensedSet).where(CondensedSet.name == name).options(undefer(CondensedSet.manifest))
    if version is not None:
        query = query.where(CondensedSet.version == version)
    return session.scalar(query.order_by(CondensedSet.version.desc()).limit(1))


def page(session: Session, *, after: str | None, limit: int) -> list[CondensedSet]:
    """The latest version of up to `limit` sets whose names follow `after`, by name, with their manifests."""
    query = _latest().order_by(CondensedSet.name).limit(limit)
    if after is not None:
        query = query.where(CondensedSet.name > after)
    return list(session.scalars(query))


def _latest() -> Select[CondensedSet]:
    is_latest: ColumnElement[bool] = and_(
        CondensedSet.name == SetName.name, CondensedSet.version == SetName.latest_version
    )
    return select(CondensedSet).join(SetName, is_latest).options(undefer(CondensedSet.manifest))
