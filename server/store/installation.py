"""Check that the database and the object store belong to the same installation.

A sweep with the wrong database, or with an empty one, would find every object unreferenced and delete it. So both
stores hold an id, made at the first start. If the ids differ, nothing starts and nothing is deleted.
"""

from __future__ import annotations

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Session

from mdc_core.errors import ConfigError
from server.store.db import Database, insert_new
from server.store.errors import STORE_ERRORS
from server.store.ids import new_id
from server.store.objects import ObjectStore
from server.store.sweep import FOLDERS
from server.store.tables import ApiKey, CondensedSet, Dataset, Installation

KEY = "installation"
"""Key of the object that holds the id."""
_ONLY = 1


def join(database: Database, objects: ObjectStore) -> str:
    """The id that both stores hold. It is written if that is safe: both are new, or from a release without ids.

    Raises:
        ConfigError: the two belong to different installations, or one of them was emptied.
    """
    stored = stored_id(objects)
    with database.read() as session:
        known = known_id(session)
        refers = _has_rows(session, Dataset, CondensedSet)
        is_new = not _has_rows(session, ApiKey)
    if known is not None and known == stored:
        return known
    if known is None and stored is None and (not is_new or _is_empty(objects)):
        # Both are new, or from a release without ids.
        return _write(database, objects, new_id("inst"))
    if known is not None and stored is None and not refers:
        # The process that made the id ended before it wrote it to the object store.
        return _write(database, objects, known)
    raise ConfigError(_difference(known, stored))


def join_if_there(database: Database, objects: ObjectStore) -> None:
    """`join`, unless a store is unavailable. The process starts all the same, and sweeps check again."""
    try:
        join(database, objects)
    except STORE_ERRORS as error:
        structlog.get_logger().warning("a store does not answer yet", error=repr(error))


def adopt(database: Database, objects: ObjectStore) -> str:
    """Assign the object store to this database, whatever it held. Returns the id."""
    with database.read() as session:
        known = known_id(session)
    return _write(database, objects, known or new_id("inst"))


def agrees(database: Database, objects: ObjectStore) -> bool:
    """Whether both hold the same id. Every sweep must check this first."""
    with database.read() as session:
        known = known_id(session)
    return known is not None and known == stored_id(objects)


def known_id(session: Session) -> str | None:
    """The id in the database."""
    return session.scalar(select(Installation.id).where(Installation.number == _ONLY))


def stored_id(objects: ObjectStore) -> str | None:
    """The id in the object store."""
    try:
        return objects.get(KEY).decode(errors="replace").strip()
    except FileNotFoundError:
        return None


def _write(database: Database, objects: ObjectStore, made: str) -> str:
    """Write the id. If several processes start together, the first one's id in the database wins."""
    with database.begin() as session:
        insert_new(session, Installation, number=_ONLY, id=made)
        known = known_id(session)
    assert known is not None
    objects.put(KEY, known.encode())
    return known


def _has_rows(session: Session, *tables: type[DeclarativeBase]) -> bool:
    return any(session.scalar(select(func.count()).select_from(table)) for table in tables)


def _is_empty(objects: ObjectStore) -> bool:
    return not any(True for folder in FOLDERS for _ in objects.list(folder))


def _difference(known: str | None, stored: str | None) -> str:
    if known is None:
        seen = "the database is empty, but the object store holds objects of another one"
    elif stored is None:
        seen = "the database refers to objects, but the object store is empty or another one"
    else:
        seen = f"the database belongs to the installation {known}, the object store to {stored}"
    return (
        f"{seen}: nothing was changed. Set MDC_DATABASE_URL and MDC_OBJECTS_URL (or MDC_DATA_DIR) to the two that "
        "belong together, or restore the missing one from its backup. If this store is to belong to this database "
        "from now on: python -m server.cli adopt-objects"
    )
