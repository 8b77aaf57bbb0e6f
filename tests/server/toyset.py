"""A small packed set, published for real."""

from __future__ import annotations

from typing import Any

import numpy as np

from mdc_core import rankmajor
from mdc_core.budget import convnet_cost
from mdc_core.manifest import build_manifest
from mdc_core.rankmajor import SetInfo
from server.deps import Services
from server.store import jobs, sets

INFO = SetInfo(ipc=4, factor=2, classes=("a", "b", "c"), mean=(0.5,), std=(0.25,), image_size=8, channels=1)
ACCURACY = (0.5, 0.7, 0.8, 0.9)


def publish(services: Services, owner: str, name: str, seed: int) -> bytes:
    """Publish the next version of `name`, of tiles drawn from `seed`; returns the object."""
    tiles = np.random.default_rng(seed).integers(0, 256, INFO.tile_shape(INFO.ipc), dtype=np.uint8)
    packed = rankmajor.pack(tiles, INFO)
    digests = rankmajor.digests(packed, INFO)
    key = f"objects/{digests.object}"
    services.objects.put(key, packed)

    def manifest(name: str, version: int) -> dict[str, Any]:
        return build_manifest(
            name=name,
            version=version,
            created="2030-01-01T00:00:00Z",
            expires=None,
            info=INFO,
            digests=digests,
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
                    "random_mean": None,
                    "random_std": None,
                    "repeats": 1,
                }
                for k, mean in enumerate(ACCURACY, 1)
            ],
            cost={"convnet": convnet_cost(2, 8, 1, 8, 3)},
        )

    with services.db.begin() as session:
        assert sets.claim_name(session, name, owner)
        job = jobs.submit(session, owner_id=owner, dataset="digits", name=name, condense={}, evaluate={})
        jobs.claim(session, job.id, "worker", 90)
        assert sets.publish(
            session,
            job.id,
            1,
            object_key=key,
            object_bytes=len(packed),
            master_key="masters/x",
            build_manifest=manifest,
        )
    return packed
