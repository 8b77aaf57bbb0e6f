"""Uploaded data sets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from server.store.db import insert_new
from server.store.ids import new_id
from server.store.states import ENDED
from server.store.tables import Dataset, Job


def add(
    session: Session,
    *,
    owner_id: str,
    name: str,
    kind: str,
    sha256: str,
    size: int,
    object_key: str,
    facts: dict[str, Any],
) -> tuple[Dataset, bool]:
    """Add an upload of `size` bytes, stored under `object_key`.

    Returns the owner's data set of these bytes, and whether it is new.
    """
    is_new = insert_new(
        session,
        Dataset,
        id=new_id("ds"),
        owner_id=owner_id,
        name=name,
        kind=kind,
        sha256=sha256,
        bytes=size,
        object_key=object_key,
        facts=facts,
    )
    dataset = same(session, owner_id, sha256)
    assert dataset is not None, "this transaction or another one has added it"
    return dataset, is_new


def get(session: Session, dataset_id: str, *, owner_id: str | None = None) -> Dataset | None:
    """The data set; with `owner_id`, only if it belongs to that owner."""
    dataset = session.get(Dataset, dataset_id)
    return dataset if dataset is not None and owner_id in (None, dataset.owner_id) else None


def same(session: Session, owner_id: str, sha256: str) -> Dataset | None:
    """The owner's data set of exactly these bytes."""
    return session.scalar(select(Dataset).where(Dataset.owner_id == owner_id, Dataset.sha256 == sha256))


def is_needed(session: Session, dataset_id: str) -> bool:
    """Whether a job that has not ended uses it."""
    query = select(Job.id).where(Job.dataset == dataset_id, Job.state.not_in(ENDED)).limit(1)
    return session.scalar(query) is not None


def unused(session: Session, before: datetime) -> list[Dataset]:
    """Data sets added before that time that no job has used since."""
    used = select(Job.dataset).where(or_(Job.created_at >= before, Job.state.not_in(ENDED)))
    return list(session.scalars(select(Dataset).where(Dataset.created_at < before, Dataset.id.not_in(used))))


def delete(session: Session, dataset: Dataset) -> bool:
    """Delete the row. Returns whether no other data set shares the object. No job may need the data set."""
    session.delete(dataset)
    session.flush()
    others = select(Dataset.id).where(Dataset.object_key == dataset.object_key).limit(1)
    return session.scalar(others) is None


def stored_bytes(session: Session, owner_id: str) -> int:
    """Bytes of all uploads of the owner."""
    return (
        session.scalar(select(func.coalesce(func.sum(Dataset.bytes), 0)).where(Dataset.owner_id == owner_id))
        or 0
    )


def page(session: Session, *, owner_id: str | None, after: str | None, limit: int) -> list[Dataset]:
    """Up to `limit` data sets, newest first, starting below the id `after`."""
    query = select(Dataset).order_by(Dataset.id.desc()).limit(limit)
    if owner_id is not None:
        query = query.where(Dataset.owner_id == owner_id)
    if after is not None:
        query = query.where(Dataset.id < after)
    return list(session.scalars(query))
