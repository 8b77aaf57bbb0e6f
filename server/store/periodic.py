"""Chores: what one process of all does, once in a while."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from server.store.db import insert_new
from server.store.tables import Chore, utcnow


def take(session: Session, name: str, every: float) -> bool:
    """Whether the chore is the caller's now: of all processes one gets it, and not again for `every` seconds.

    Who took it and died is not waited for longer than that.
    """
    now = utcnow()
    if insert_new(session, Chore, name=name, begun_at=now):
        return True
    # A time in the future is that of a clock which was wrong: it must not stop the chore.
    due = or_(
        Chore.begun_at <= now - timedelta(seconds=every), Chore.begun_at > now + timedelta(seconds=every)
    )
    taken = update(Chore).where(Chore.name == name, due).values(begun_at=now).returning(Chore.name)
    return session.scalar(taken, execution_options={"synchronize_session": False}) is not None
