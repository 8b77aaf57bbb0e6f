"""Periodic tasks, each done by one process at a time of all that share the database."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from server.store.db import insert_new
from server.store.tables import PeriodicTask, utcnow


def take(session: Session, name: str, every: float) -> bool:
    """Try to take the task. Returns True to one process only, and not again for `every` seconds.

    If that process dies, another one takes the task when the time has passed.
    """
    now = utcnow()
    if insert_new(session, PeriodicTask, name=name, begun_at=now):
        return True
    # A time in the future comes from a wrong clock. It must not block the task.
    due = or_(
        PeriodicTask.begun_at <= now - timedelta(seconds=every),
        PeriodicTask.begun_at > now + timedelta(seconds=every),
    )
    taken = (
        update(PeriodicTask)
        .where(PeriodicTask.name == name, due)
        .values(begun_at=now)
        .returning(PeriodicTask.name)
    )
    return session.scalar(taken, execution_options={"synchronize_session": False}) is not None
