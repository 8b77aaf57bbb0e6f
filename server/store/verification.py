"""Check that every referenced object exists and is undamaged, and repair what can be repaired.

Keys contain the sha256 of the bytes, so a copy in the trash can be verified before it is restored. A set's object can
also be rebuilt from its master, which holds the same tiles before they were rounded to 8 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import undefer

from server.store.db import Database
from server.store.objects import ObjectStore
from server.store.sweep import TRASH
from server.store.tables import CondensedSet, Dataset


class Fault(NamedTuple):
    """A missing or damaged object."""

    key: str
    what: str
    """`missing` or `damaged`."""
    of: str
    """What it belongs to, for people."""
    repaired: bool


def verify_objects(database: Database, objects: ObjectStore) -> Iterator[Fault]:
    """Read every object of uploads and sets. Yields the faulty ones, repaired if possible."""
    with database.read() as session:
        uploads = [(row.object_key, f"data set {row.id}") for row in session.scalars(select(Dataset))]
        versions = list(session.scalars(select(CondensedSet).options(undefer(CondensedSet.manifest))))
    for key, of in sorted(set(uploads)):
        if (what := _fault(objects, key)) is not None:
            yield Fault(key, what, of, _from_trash(objects, key))
    for row in versions:
        of = f"set {row.name}@{row.version}"
        if (what := _fault(objects, row.master_key)) is not None:
            yield Fault(row.master_key, what, f"{of} (its master)", _from_trash(objects, row.master_key))
        if (what := _fault(objects, row.object_key)) is not None:
            repaired = _from_trash(objects, row.object_key) or _from_master(objects, row)
            yield Fault(row.object_key, what, of, repaired)


def _fault(objects: ObjectStore, key: str) -> str | None:
    """The fault of an object that is named by its digest, or None."""
    digest = _digest(objects, key)
    if digest is None:
        return "missing"
    return None if digest == _promised(key) else "damaged"


def _promised(key: str) -> str:
    return PurePosixPath(key).name.partition(".")[0]


def _digest(objects: ObjectStore, key: str) -> str | None:
    size = objects.head(key)
    if size is None:
        return None
    digest = hashlib.sha256()
    for piece in objects.stream(key, 0, size):
        digest.update(piece)
    return digest.hexdigest()


def _from_trash(objects: ObjectStore, key: str) -> bool:
    if _digest(objects, TRASH + key) != _promised(key):
        return False
    objects.copy(TRASH + key, key)
    return True


def _from_master(objects: ObjectStore, row: CondensedSet) -> bool:
    """Rebuild the object from its master, by the same rounding. Returns whether its digest is right."""
    import numpy as np  # imported here: the API does without numpy

    from mdc_core.delivery import rankmajor
    from mdc_core.delivery.manifest import parse_manifest

    if _fault(objects, row.master_key) is not None:
        return False
    info = parse_manifest(row.manifest).info
    # A safetensors file with one tensor: 8 bytes with the header's length, the header, the values.
    master = objects.get(row.master_key)
    values = np.frombuffer(master, "<f4", offset=8 + int.from_bytes(master[:8], "little"))
    try:
        data = rankmajor.pack(rankmajor.quantise(values.reshape(info.tile_shape(info.ipc))), info)
    except ValueError:
        return False
    if hashlib.sha256(data).hexdigest() != _promised(row.object_key):
        return False
    objects.put(row.object_key, data)
    return True
