"""A data folder with published sets of random tiles, for benchmarks of their delivery."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import build_manifest
from mdc_core.delivery.rankmajor import SetInfo
from server.access.tokens import create_key
from server.settings import Settings
from server.store import jobs, migrate, sets
from server.store.db import Database
from server.store.objects import ObjectStore, open_objects


def publish(data_dir: Path, infos: Mapping[str, SetInfo], **facts: Any) -> tuple[str, dict[str, bytes]]:
    """Publish version 1 of a set for every name; returns a key that reads them, and the file of each.

    `facts` are `network`, `recipe` and `cost` of the manifests, empty where left out; there are no measurements.
    """
    settings = Settings(data_dir=data_dir)
    migrate.upgrade(settings.database_url)
    db, objects = Database(settings.database_url), open_objects(settings.objects_url)
    try:
        return publish_into(db, objects, settings.secret_key(), infos, **facts)
    finally:
        db.dispose()


def publish_into(
    db: Database, objects: ObjectStore, secret_key: bytes, infos: Mapping[str, SetInfo], **facts: Any
) -> tuple[str, dict[str, bytes]]:
    """The same into stores that are open."""
    with db.begin() as session:
        owner, token = create_key(session, secret_key, name="device", scopes=["subsets:read"])
    files = {}
    for name, info in infos.items():
        tiles = np.random.default_rng(0).integers(0, 256, info.tile_shape(info.ipc), dtype=np.uint8)
        packed = files[name] = rankmajor.pack(tiles, info)
        key = f"sets/{rankmajor.sha256(packed)}.safetensors"
        objects.put(key, packed)
        with db.begin() as session:
            sets.claim_name(session, name, owner.id)
            job = jobs.submit(
                session, owner_id=owner.id, dataset="digits", name=name, condense={}, evaluate={}
            )
            jobs.claim(session, job.id, "benchmark", 90)
            sets.publish(
                session,
                job.id,
                1,
                object_key=key,
                object_bytes=len(packed),
                master_key="none",
                build_manifest=partial(_describe, packed, info, facts),
            )
    return token, files


def _describe(
    packed: bytes, info: SetInfo, facts: Mapping[str, Any], name: str, version: int
) -> dict[str, Any]:
    return build_manifest(
        name=name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        expires=None,
        info=info,
        digests=rankmajor.digests(packed, info),
        object_url=f"/v1/sets/{name}@{version}/subsets/{info.ipc}",
        accuracy=[],
        **{"network": {}, "recipe": {}, "cost": {}, **facts},
    )
