"""The sweep: objects that no row refers to, and files of writes that were interrupted.

What is swept goes to `trash/` first, for the case that the database was wrong, and is deleted a week later.
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
"""Objects that are looked up by one query."""

POOL_SECONDS = 30 * 24 * 3600.0
"""Trained networks that no job has used for so long are deleted; using one writes it again."""
TRASH = "trash/"
TRASH_SECONDS = 7 * 24 * 3600.0
"""How long what was swept can be restored."""
FEW = 10
"""So many objects may go whatever share of all they are."""
# What is written below these folders, and the column that refers to it. Nothing else in the store is touched.
_REFERRING: dict[str, InstrumentedAttribute[str]] = {
    "datasets": Dataset.object_key,
    "sets": CondensedSet.object_key,
    "masters": CondensedSet.master_key,
}
_CACHES = ("pools",)
"""Made again by whoever needs it."""
FOLDERS = ("jobs", "pools", *_REFERRING)
"""Whatever lies elsewhere in the store is not ours."""


def check_share(database: Database, objects: ObjectStore, age_seconds: float) -> None:
    """Ask the operator before most of what could be needed goes. `ConfigError` says how."""
    garbage = sum(
        stored.key.split("/")[0] in _REFERRING
        for stored in sweep(database, objects, age_seconds, dry_run=True)
    )
    total = sum(1 for folder in _REFERRING for _ in objects.list(folder))
    if garbage > FEW and 2 * garbage > total:
        raise ConfigError(
            f"the sweep would take {garbage} of {total} uploads and sets: nothing was changed. If the database is the "
            "right one, and they are not needed: python -m server.cli sweep --allow-most"
        )


def restore(objects: ObjectStore, prefix: str = "") -> Iterator[str]:
    """Put back what was swept below `prefix`; the keys of what there was no object in the place of."""
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
    """Trash, or with `dry_run` only find, objects that nothing refers to and that are older than `age_seconds`.

    These are: what was written below `jobs/` for a job that has ended, or that the database does not know; uploads
    without a data set; sets and masters without a published version (a withdrawn one keeps its own); and networks
    below `pools/` that have not been used for `POOL_SECONDS` either, to which nothing ever refers: a job that finds
    none trains it. Ends early when `stop` is set.
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
    """Trash the object unless it is needed after all; nobody can begin to write it meanwhile."""
    with database.begin() as session:
        holds.lock(session, key, shared=False)
        # Holds first: one that is given up between the two questions leaves a row behind.
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
    """Those of the keys that a row refers to, or whose job has not ended."""
    if folder == "pools":
        return set()
    if folder == "jobs":
        job_ids = {key: key.split("/")[1] for key in keys}
        query = select(Job.id).where(Job.id.in_(set(job_ids.values())), Job.state.not_in(ENDED))
        going_on = set(session.scalars(query))
        return {key for key, job_id in job_ids.items() if job_id in going_on}
    column = _REFERRING[folder]
    return set(session.scalars(select(column).where(column.in_(keys))))


def delete_leftovers(objects: ObjectStore, job_id: str) -> None:
    """Delete every object of an ended job's own, such as checkpoints; the published set lies elsewhere."""
    for stored in list(objects.list(f"jobs/{job_id}")):
        objects.delete(stored.key)
