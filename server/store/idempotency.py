"""Idempotency keys: a repeated submission gets the first response."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.orm import Session

from server.store.db import insert_new
from server.store.tables import IdempotencyKey


def reserve(session: Session, owner_id: str, key: str, body_sha256: str) -> IdempotencyKey | None:
    """Reserve the key in this transaction. Returns None if it is new, else the row of the first submission.

    A concurrent submission with the same key waits here until the first commits or rolls back.
    """
    if insert_new(session, IdempotencyKey, owner_id=owner_id, key=key, body_sha256=body_sha256):
        return None
    return session.get_one(IdempotencyKey, (owner_id, key))


def find(session: Session, owner_id: str, key: str) -> IdempotencyKey | None:
    """The row of the committed submission with this key."""
    return session.get(IdempotencyKey, (owner_id, key))


def answer(session: Session, owner_id: str, key: str, job_id: str) -> None:
    """Record the job that the submission created."""
    session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.owner_id == owner_id, IdempotencyKey.key == key)
        .values(job_id=job_id)
    )
