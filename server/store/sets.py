"""Condensed sets: names, versions, and publishing in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import and_, func, select, update
from sqlalchemy.orm import Session, undefer

from server.store import jobs
from server.store.db import insert_new
from server.store.states import JobState
from server.store.tables import CondensedSet, SetName, utcnow


def claim_name(session: Session, name: str, owner_id: str) -> bool:
    """Claim the name for the owner, if it is free. Returns False if it belongs to another owner."""
    query = select(SetName.owner_id).where(SetName.name == name)
    owner = session.scalar(query)
    if owner is None:
        insert_new(session, SetName, name=name, owner_id=owner_id)
        owner = session.scalar(query)  # a concurrent transaction may have been first
    return owner == owner_id


def publish(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    object_key: str,
    object_bytes: int,
    master_key: str,
    build_manifest: Callable[[str, int], dict[str, Any]],
    advice: str | None = None,
) -> CondensedSet | None:
    """Add the job's result as the next version of its set, and end the job as succeeded.

    `build_manifest` is called with the set's name and the version. Both objects must be stored already. `advice` goes
    into the job's last event. Returns None, and changes nothing, if `attempt` no longer holds the job or the job was
    canceled.
    """
    job = jobs.held(session, job_id, attempt)
    if job is None or job.state is not JobState.RUNNING:
        return None
    # This locks the name's row until the commit, so that versions have no gaps and no duplicates.
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
    jobs.succeed(session, job_id, attempt, version, advice)
    return published


def get(session: Session, name: str, version: int | None = None) -> CondensedSet | None:
    """A version of a set, with its manifest. Without `version`, the latest; with it, even a withdrawn one."""
    if version is None and (version := latest_version(session, name)) is None:
        return None
    return session.get(CondensedSet, (name, version), options=[undefer(CondensedSet.manifest)])


def latest_version(session: Session, name: str) -> int | None:
    """The newest version that is not withdrawn; None if there is none."""
    return session.scalar(
        select(func.max(CondensedSet.version)).where(
            CondensedSet.name == name, CondensedSet.withdrawn_at.is_(None)
        )
    )


def is_known(session: Session, name: str) -> bool:
    """Whether a version of the set was ever published."""
    return bool(session.scalar(select(SetName.latest_version).where(SetName.name == name)))


def is_withdrawn(session: Session, name: str, version: int) -> bool:
    """Whether a published version was withdrawn."""
    query = select(CondensedSet.withdrawn_at).where(
        CondensedSet.name == name, CondensedSet.version == version
    )
    return session.scalar(query) is not None


def withdraw(session: Session, name: str, version: int) -> None:
    """Withdraw the version; twice changes nothing. Its objects stay, since other versions may share them."""
    session.execute(
        update(CondensedSet)
        .where(
            CondensedSet.name == name, CondensedSet.version == version, CondensedSet.withdrawn_at.is_(None)
        )
        .values(withdrawn_at=utcnow())
    )


def page(session: Session, *, after: str | None, limit: int) -> list[CondensedSet]:
    """Latest versions of up to `limit` sets after the name `after`, ordered by name, with their manifests."""
    latest = (
        select(CondensedSet.name, func.max(CondensedSet.version).label("version"))
        .where(CondensedSet.withdrawn_at.is_(None))
        .group_by(CondensedSet.name)
        .order_by(CondensedSet.name)
        .limit(limit)
    )
    if after is not None:
        latest = latest.where(CondensedSet.name > after)
    newest = latest.subquery()
    query = select(CondensedSet).join(
        newest, and_(CondensedSet.name == newest.c.name, CondensedSet.version == newest.c.version)
    )
    return list(session.scalars(query.order_by(CondensedSet.name).options(undefer(CondensedSet.manifest))))
