"""The sweep deletes objects that no row refers to, and leftovers of interrupted writes.

Objects are written before the transaction that refers to them, so every crash in between leaves one behind. Nobody
else can tell it from an object that a slow writer is about to refer to; hence the minimum age and the holds. Swept
objects go to `trash/` for a week, in case the database was wrong (restored from an old backup, say).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from datetime import timedelta
from itertools import islice

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from mdc_core.errors import ConfigError
from server.store import holds
from server.store.db import Database
from server.store.objects import ObjectStore, Stored
from server.store.states import ENDED
from server.store.tables import CondensedSet, Dataset, Job, utcnow

BATCH = 500
"""Objects looked up per query."""

POOL_SECONDS = 30 * 24 * 3600.0
"""Trained networks are deleted if no job has used them for so long. Each use updates their time."""
TRASH = "trash/"
TRASH_SECONDS = 7 * 24 * 3600.0
"""How long swept objects can be restored."""
FEW = 10
"""`check_share` never refuses so few objects."""
# Folders of objects, and the columns that refer to them.
_REFERRING: dict[str, InstrumentedAttribute[str]] = {
    "datasets": Dataset.object_key,
    "sets": CondensedSet.object_key,
    "masters": CondensedSet.master_key,
}
_CACHES = ("pools",)
"""Folders of caches, whose objects skip the trash: a job makes them again."""
FOLDERS = ("jobs", "pools", *_REFERRING)
"""The folders to sweep. Everything else in the store is left alone."""


def check_share(database: Database, objects: ObjectStore, age_seconds: float) -> None:
    """Refuse a sweep of more than half of all uploads and sets. The `ConfigError` says how to confirm it."""
    garbage = sum(
        stored.key.split("/")[0] in _REFERRING
        for stored in sweep(database, objects, age_seconds, dry_run=True)
    )
    total = sum(1 for folder in _REFERRING for _ in objects.list(folder))
    if garbage > FEW and 2 * garbage > total:
        raise ConfigError(
            f"the sweep would delete {garbage} of {total} uploads and sets: nothing was changed. Check that "
            "MDC_DATABASE_URL names the right database. To delete them all the same: "
            "python -m server.cli sweep --allow-most"
        )


def restore(objects: ObjectStore, prefix: str = "") -> Iterator[str]:
    """Restore swept objects below `prefix`, except where an object exists again. Yields their keys."""
    for stored in list(objects.list(TRASH.rstrip("/"))):
        key = stored.key.removeprefix(TRASH)
        if key.startswith(prefix) and objects.head(key) is None:
            objects.copy(stored.key, key)
            yield key


def sweep(
    database: Database,
    objects: ObjectStore,
    age_seconds: float,
    *,
    dry_run: bool = False,
    stop: threading.Event | None = None,
) -> Iterator[Stored]:
    """Move unreferenced objects older than `age_seconds` to the trash, and yield them. `dry_run` only yields them.

    Unreferenced are:
    - objects below `jobs/` of a job that has ended or does not exist;
    - uploads without a data set;
    - sets and masters without a published version (a withdrawn version keeps its objects);
    - networks below `pools/` that were not used for `POOL_SECONDS` either. They are a cache: no row refers to them.

    Ends early if `stop` is set.
    """
    now = utcnow()
    before = now - timedelta(seconds=age_seconds)
    unused = now - timedelta(seconds=max(age_seconds, POOL_SECONDS))
    if not dry_run:
        objects.delete_unfinished(before)
        _empty_trash(objects)
        with database.begin() as session:
            holds.delete_expired(session)
    for folder in FOLDERS:
        limit = unused if folder == "pools" else before
        old = (stored for stored in objects.list(folder) if stored.modified < limit)
        while batch := list(islice(old, BATCH)):
            with database.read() as session:
                needed = _needed(session, folder, {stored.key for stored in batch})
            for stored in batch:
                if stop is not None and stop.is_set():
                    return
                if stored.key not in needed and (dry_run or _delete(database, objects, folder, stored.key)):
                    yield stored


def _delete(database: Database, objects: ObjectStore, folder: str, key: str) -> bool:
    """Move the object to the trash unless it is needed after all. The lock keeps writers from taking a hold."""
    with database.begin() as session:
        holds.lock(session, key, shared=False)
        # Check holds first: a hold released between the two checks has left a row, which the second one sees.
        if holds.is_held(session, key) or key in _needed(session, folder, {key}):
            return False
        if folder not in _CACHES:
            objects.copy(key, TRASH + key)
        objects.delete(key)
        return True


def _empty_trash(objects: ObjectStore) -> None:
    before = utcnow() - timedelta(seconds=TRASH_SECONDS)
    for stored in [stored for stored in objects.list(TRASH.rstrip("/")) if stored.modified < before]:
        objects.delete(stored.key)


def _needed(session: Session, folder: str, keys: Collection[str]) -> set[str]:
    """The keys that a row refers to, or whose job has not ended."""
    if folder == "pools":
        return set()
    if folder == "jobs":
        job_ids = {key: key.split("/")[1] for key in keys}
        query = select(Job.id).where(Job.id.in_(set(job_ids.values())), Job.state.not_in(ENDED))
        active = set(session.scalars(query))
        return {key for key, job_id in job_ids.items() if job_id in active}
    column = _REFERRING[folder]
    return set(session.scalars(select(column).where(column.in_(keys))))


def delete_leftovers(objects: ObjectStore, job_id: str) -> None:
    """Delete the objects below `jobs/` of an ended job, such as checkpoints. Its published set stays."""
    for stored in list(objects.list(f"jobs/{job_id}")):
        objects.delete(stored.key)
