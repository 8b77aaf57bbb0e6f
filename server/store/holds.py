"""Holds protect an object from the sweep until a row refers to it.

Objects are named by their content. So a new upload may have the key of an old, unreferenced object that the sweep is
about to delete. A writer therefore takes a hold first, and releases it in the transaction that adds the reference. The
sweep locks a key against new holds while it deletes the object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.store.db import Database
from server.store.ids import new_id
from server.store.tables import ObjectHold, utcnow

HOLD_SECONDS = 24 * 3600
"""Lifetime of a hold, far more than any write takes. A slower writer must write again."""


class HoldLostError(Exception):
    """The hold has expired and the object may be gone: write it again."""


@dataclass(frozen=True)
class Hold:
    """Keeps objects safe from the sweep until it is released or expires."""

    ids: tuple[str, ...]

    def give_up(self, session: Session) -> None:
        """Release the hold in the transaction that refers to the objects. Raises `HoldLostError` if it has expired."""
        released = delete(ObjectHold).where(ObjectHold.id.in_(self.ids)).returning(ObjectHold.id)
        if len(session.scalars(released).all()) != len(self.ids):
            raise HoldLostError("writing the objects took too long: they must be written again")


@contextmanager
def holding(database: Database, keys: Sequence[str]) -> Iterator[Hold]:
    """Hold keys before their objects are written, until `Hold.give_up` or the end of the block."""
    hold = Hold(tuple(new_id("hold") for _ in keys))
    expires = utcnow() + timedelta(seconds=HOLD_SECONDS)
    with database.begin() as session:
        # In a fixed order, to avoid deadlocks between holders of the same keys.
        for key in sorted(keys):
            lock(session, key, shared=True)
        session.add_all(
            ObjectHold(id=hold_id, object_key=key, expires_at=expires)
            for hold_id, key in zip(hold.ids, keys, strict=True)
        )
    try:
        yield hold
    finally:
        with suppress(SQLAlchemyError), database.begin() as session:  # if this fails, they expire
            session.execute(delete(ObjectHold).where(ObjectHold.id.in_(hold.ids)))


def is_held(session: Session, key: str) -> bool:
    """Whether anyone holds the key."""
    return session.scalar(select(ObjectHold.id).where(ObjectHold.object_key == key).limit(1)) is not None


def delete_expired(session: Session) -> None:
    """Delete the holds that processes left when they died."""
    session.execute(delete(ObjectHold).where(ObjectHold.expires_at < utcnow()))


def lock(session: Session, key: str, *, shared: bool) -> None:
    """Lock the key until the transaction ends: holders share the lock, the sweep takes it exclusively."""
    if session.get_bind().dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
        name = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        session.execute(select(name(number)))
    # SQLite needs no lock: it runs one writing transaction at a time.
