"""A small packed set, published for real."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import convnet_cost
from mdc_core.delivery.manifest import build_manifest
from mdc_core.delivery.rankmajor import SetInfo
from server.delivery.catalog import Version
from server.services import Services
from server.store import jobs, sets
from server.store.tables import CondensedSet

INFO = SetInfo(ipc=4, factor=2, classes=("a", "b", "c"), mean=(0.5,), std=(0.25,), image_size=8, channels=1)
ACCURACY = (0.5, 0.7, 0.8, 0.9)
MIXED = (0.3, 0.6, 0.85, 0.95)
"""Accuracy of random real images that two of these sizes beat, and two do not."""
RANDOM = "not better than random real images of the same count"


def build(seed: int) -> tuple[bytes, Version]:
    """An object of tiles drawn from `seed`, and version 1 of a set `toy` that it would be."""
    packed = pack(seed)
    manifest = describe(packed, "toy", 1)
    row = CondensedSet(
        name="toy", version=1, object_key=_key(packed), object_bytes=len(packed), manifest=manifest
    )
    return packed, Version.of(row)


def publish(
    services: Services, owner: str, name: str, seed: int, random: Sequence[float | None] = (None,) * 4
) -> bytes:
    """Publish the next version of `name`, of tiles drawn from `seed`; returns the object.

    `random` is the accuracy of the baseline at every size.
    """
    packed = pack(seed)
    services.objects.put(_key(packed), packed)
    with services.db.begin() as session:
        assert sets.claim_name(session, name, owner)
        job = jobs.submit(session, owner_id=owner, dataset="digits", name=name, condense={}, evaluate={})
        jobs.claim(session, job.id, "worker", 90)
        assert sets.publish(
            session,
            job.id,
            1,
            object_key=_key(packed),
            object_bytes=len(packed),
            master_key="masters/x",
            build_manifest=partial(describe, packed, random=random),
        )
    return packed


def pack(seed: int) -> bytes:
    tiles = np.random.default_rng(seed).integers(0, 256, INFO.tile_shape(INFO.ipc), dtype=np.uint8)
    return rankmajor.pack(tiles, INFO)


def describe(
    packed: bytes, name: str, version: int, random: Sequence[float | None] = (None,) * 4
) -> dict[str, Any]:
    """The manifest of an object."""
    return build_manifest(
        name=name,
        version=version,
        created="2030-01-01T00:00:00Z",
        expires=None,
        info=INFO,
        digests=rankmajor.digests(packed, INFO),
        object_url=f"/v1/sets/{name}@{version}/subsets/{INFO.ipc}",
        network={"name": "convnet", "depth": 2, "width": 8},
        recipe={"epochs": 10, "batch_size": 8},
        accuracy=[
            {
                "network": "convnet",
                "epochs": 10,
                "k": k,
                "mdc_mean": mean,
                "mdc_std": 0.01,
                "random_mean": baseline,
                "random_std": None if baseline is None else 0.01,
                "repeats": 1,
            }
            for k, (mean, baseline) in enumerate(zip(ACCURACY, random, strict=True), 1)
        ],
        cost={"convnet": convnet_cost(2, 8, 1, 8, 3)},
    )


def _key(packed: bytes) -> str:
    return f"objects/{rankmajor.sha256(packed)}"
