"""Trained networks in the object store: read once, written again when they are used."""

from __future__ import annotations

from server.store.objects import open_objects
from worker.pools import ObjectPools


def test_a_network_that_is_used_is_written_again_once() -> None:
    objects = open_objects("memory://")
    assert ObjectPools(objects).get("0a") is None
    ObjectPools(objects).put("0a", b"weights")
    assert [stored.key for stored in objects.list("pools")] == ["pools/0a"]
    (before,) = (stored.modified for stored in objects.list("pools"))
    pools = ObjectPools(objects)
    assert pools.get("0a") == b"weights"
    (used,) = (stored.modified for stored in objects.list("pools"))
    assert used > before
    assert pools.get("0a") == b"weights"
    assert [stored.modified for stored in objects.list("pools")] == [used]
