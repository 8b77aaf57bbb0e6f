"""Trained networks in the object store, shared by the attempts of a job and by jobs on the same data."""

from __future__ import annotations

from mdc_core.condensation.pool import MemoryPools
from server.store.objects import ObjectStore

FOLDER = "pools"


class ObjectPools(MemoryPools):
    """A `mdc_core.condensation.pool.PoolStore` that reads each network once.

    Each read writes the object again, so that its time is that of its last use. The sweep deletes by that time.
    """

    def __init__(self, objects: ObjectStore) -> None:
        super().__init__()
        self._objects = objects

    def get(self, key: str) -> bytes | None:
        """See `PoolStore.get`."""
        data = super().get(key)
        if data is None:
            try:
                data = self._objects.get(f"{FOLDER}/{key}")
            except FileNotFoundError:
                return None
            self.put(key, data)
        return data

    def put(self, key: str, data: bytes) -> None:
        """See `PoolStore.put`."""
        self._objects.put(f"{FOLDER}/{key}", data)
        super().put(key, data)
