"""What is answered from memory: bounded, the same bytes, and no longer than it may be."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from mdc_core.delivery import rankmajor
from mdc_core.errors import DigestError
from server.access.callers import Caller, KnownKeys, PresentedKey
from server.caching.lru import Lru
from server.caching.revalidating import TRUST_SECONDS
from server.delivery.answers import CHUNK, in_chunks
from server.delivery.catalog import Catalog
from server.delivery.rank_cache import WHOLE_BODY_BYTES, Piece, RankCache
from server.store import keys, sets
from server.store.objects import open_objects
from server.store.tables import utcnow
from tests.server.conftest import Published, sqlite_only
from tests.server.test_problems import check
from tests.server.toyset import INFO, build


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.sampled_from("gpd"), st.integers(0, 5), st.integers(1, 8)), max_size=40),
)
def test_the_least_recently_used_goes_first(capacity: int, steps: list[tuple[str, int, int]]) -> None:
    cache: Lru[int, int] = Lru(capacity, lambda value: value)
    model: OrderedDict[int, int] = OrderedDict()
    for step, key, value in steps:
        if step == "g":
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        else:
            model.pop(key, None)
            cache.drop(key) if step == "d" else cache.put(key, value)
            if step == "p" and value <= capacity:
                model[key] = value
        while sum(model.values()) > capacity:
            model.popitem(last=False)
        assert cache.weight == sum(model.values()) <= capacity


@given(st.lists(st.integers(0, 3 * CHUNK), min_size=1, max_size=5))
def test_large_bodies_go_out_in_pieces_of_a_chunk(sizes: list[int]) -> None:
    pieces: list[Piece] = [bytes([index]) * size for index, size in enumerate(sizes)]
    sent = in_chunks(pieces)
    assert b"".join(sent) == b"".join(pieces)
    if sum(sizes) <= WHOLE_BODY_BYTES:
        assert len(sent) == 1
    else:
        assert all(0 < len(piece) <= CHUNK for piece in sent)
        assert len(sent) <= 2 * sum(sizes) // CHUNK + 1


@given(
    st.integers(0, 20 * INFO.rank_bytes),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9999), st.integers(0, 9999)), max_size=8),
)
def test_parts_are_the_bytes_of_the_file(capacity: int, spans: list[tuple[int, int, int]]) -> None:
    packed, version = build(7)
    objects = open_objects("memory://")
    objects.put(version.object_key, packed)
    ranks = RankCache(objects, capacity)
    for k, *ends in spans:
        whole = rankmajor.subset(packed, INFO, k)
        start, end = sorted(value % (len(whole) + 1) for value in ends)
        for _ in range(2):
            assert b"".join(ranks.read(version, k, start, end)) == whole[start:end]
            warm = ranks.warm(version, k, start, end)
            assert warm is None or b"".join(warm) == whole[start:end]


def test_what_was_read_needs_the_store_no_more() -> None:
    packed, version = build(7)
    objects = open_objects("memory://")
    objects.put(version.object_key, packed)
    ranks = RankCache(objects, 2**20)
    whole = rankmajor.subset(packed, INFO, 3)
    assert ranks.warm(version, 3, 0, len(whole)) is None
    ranks.read(version, 3, 0, len(whole))
    objects.delete(version.object_key)
    assert b"".join(ranks.warm(version, 2, 0, len(whole) - INFO.rank_bytes) or []) == rankmajor.subset(
        packed, INFO, 2
    )
    assert ranks.warm(version, 4, 0, version.length(4)) is None
    with pytest.raises(FileNotFoundError):
        ranks.read(version, 4, 0, version.length(4))


def test_a_damaged_object_is_not_kept() -> None:
    packed, version = build(7)
    damaged = bytearray(packed)
    damaged[version.length(1)] ^= 1
    objects = open_objects("memory://")
    objects.put(version.object_key, bytes(damaged))
    ranks = RankCache(objects, 2**20)
    with pytest.raises(DigestError, match="rank 2"):
        ranks.read(version, 3, 0, version.length(3))
    assert ranks.warm(version, 2, 0, version.length(2)) is None


def test_a_version_that_is_pinned_is_answered_without_the_database(toy: Published) -> None:
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    urls = ["/v1/sets/toy@2/subsets/3", "/subsets/2?set=toy@2", "/v1/sets/toy@2/manifest"]
    urls += ["/v1/sets/toy@2/ranks/4", "/v1/sets/toy@2"]
    first = [toy.get(url).content for url in urls]
    for key, *_ in list(toy.api.services.objects.list("objects")):
        toy.api.services.objects.delete(key)
    event.listen(toy.api.services.db.engine, "before_cursor_execute", record)
    assert [toy.get(url).content for url in urls] == first
    assert statements == []
    toy.get("/subsets/2?set=toy")
    assert statements != []


@sqlite_only
def test_a_withdrawal_elsewhere_is_seen_after_the_time_of_trust(toy: Published) -> None:
    db, now = toy.api.services.db, [100.0]
    catalog = Catalog(db, lambda: now[0])
    found, pinned = catalog.find("toy@1")
    assert pinned
    assert catalog.warm("toy@1") == (found, False)
    assert catalog.warm("toy") is None
    with db.begin() as session:
        sets.withdraw(session, "toy", 1)
    now[0] += TRUST_SECONDS - 0.001
    assert catalog.warm("toy@1") == (found, True)
    assert catalog.find("toy@1") == (found, True)
    now[0] += 0.001
    assert catalog.warm("toy@1") is None
    with pytest.raises(Exception, match="withdrawn"):
        catalog.find("toy@1")
    second, pinned = catalog.find("toy")
    assert (second.row.version, pinned) == (2, False)
    now[0] += TRUST_SECONDS
    assert catalog.find("toy@2")[0] is second


@pytest.mark.parametrize("expires_in", [None, 3600, -1])
def test_a_key_is_known_for_the_time_of_trust(expires_in: int | None) -> None:
    now = [100.0]
    known = KnownKeys(lambda: now[0])
    caller = Caller("id", frozenset(["subsets:read"]))
    right = PresentedKey("id", "right")
    expires: datetime | None = None if expires_in is None else utcnow() + timedelta(seconds=expires_in)
    assert known.get(right) is None
    known.put(caller, "right", expires, known.now())
    works = expires_in != -1
    assert known.get(right) == ((caller, False) if works else None)
    now[0] += TRUST_SECONDS / 2
    assert known.get(right) == ((caller, True) if works else None)
    assert known.get(PresentedKey("id", "wrong")) is None
    assert known.get(PresentedKey("other", "right")) is None
    now[0] += TRUST_SECONDS
    assert known.get(right) is None
    known.put(caller, "right", expires, known.now())
    known.forget("id")
    assert known.get(right) is None


@sqlite_only
def test_memory_opens_no_route_but_those_of_readers(toy: Published) -> None:
    """A key that is revoked behind the API's back reads on for a moment, and does nothing else."""
    headers = toy.api.key("admin")
    assert toy.api.client.get("/v1/sets/toy@1", headers=headers).status_code == 200
    with toy.api.services.db.begin() as session:
        keys.revoke(session, headers["Authorization"].split("_")[1])
    assert toy.api.client.get("/v1/sets/toy@1", headers=headers).status_code == 200
    check(toy.api.client.get("/v1/keys", headers=headers), 401, "unauthenticated")
    check(toy.api.client.delete("/v1/sets/toy@1", headers=headers), 401, "unauthenticated")
    forged = {"Authorization": headers["Authorization"][:-1] + "~"}
    check(toy.api.client.get("/v1/sets/toy@1", headers=forged), 401, "unauthenticated")
