"""Holds: an object is in no row until it is written, and must not be swept before.

Objects are named by their content, so what is written now may be an old object that nothing refers to and that the
sweep is about to delete. Whoever writes one takes a hold first, and gives it up in the transaction that refers to the
object; the sweep deletes an object only while nobody can take a hold of it.
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
"""Far more than writing an object takes; whoever takes longer has to write it again."""


class HoldLostError(Exception):
    """The hold has expired, and the object may have been swept: it must be written again."""


@dataclass(frozen=True)
class Hold:
    """Objects that are safe from the sweep until the hold is given up or expires."""

    ids: tuple[str, ...]

    def give_up(self, session: Session) -> None:
        """End the hold together with the transaction that refers to the objects. `HoldLostError`: too late."""
        given_up = delete(ObjectHold).where(ObjectHold.id.in_(self.ids)).returning(ObjectHold.id)
        if len(session.scalars(given_up).all()) != len(self.ids):
            raise HoldLostError("writing the objects took too long: they have to be written again")


@contextmanager
def holding(database: Database, keys: Sequence[str]) -> Iterator[Hold]:
    """Hold objects from before they are written until `Hold.give_up`, or until the block is left."""
    hold = Hold(tuple(new_id("hold") for _ in keys))
    expires = utcnow() + timedelta(seconds=HOLD_SECONDS)
    with database.begin() as session:
        # In one order, so that two who hold the same keys do not wait for each other.
        for key in sorted(keys):
            lock(session, key, shared=True)
        session.add_all(
            ObjectHold(id=hold_id, object_key=key, expires_at=expires)
            for hold_id, key in zip(hold.ids, keys, strict=True)
        )
    try:
        yield hold
    finally:
        with suppress(SQLAlchemyError), database.begin() as session:  # else they expire
            session.execute(delete(ObjectHold).where(ObjectHold.id.in_(hold.ids)))


def is_held(session: Session, key: str) -> bool:
    """Whether someone writes the object."""
    return session.scalar(select(ObjectHold.id).where(ObjectHold.object_key == key).limit(1)) is not None


def delete_expired(session: Session) -> None:
    """Forget the holds of processes that died."""
    session.execute(delete(ObjectHold).where(ObjectHold.expires_at < utcnow()))


def lock(session: Session, key: str, *, shared: bool) -> None:
    """Keep holds of this object from being taken until the transaction ends; those who take them share the lock."""
    if session.get_bind().dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
        name = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        session.execute(select(name(number)))
    # On SQLite a transaction that may write is alone from its beginning.
