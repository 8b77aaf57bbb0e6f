"""Objects that are missing or damaged: what callers see, and what the operator can mend."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import structlog
from safetensors.numpy import save

from mdc_core.delivery import rankmajor
from server.store import jobs, keys, sets
from server.store.sweep import TRASH
from server.store.verification import Fault, verify_objects
from tests.server.conftest import Api, Published, sqlite_only
from tests.server.toyset import INFO, describe


def published(api: Api) -> tuple[str, str, bytes]:
    """Keys of a set's object and master, and the object."""
    tiles = np.random.default_rng(3).random(INFO.tile_shape(INFO.ipc), dtype=np.float32)
    packed, master = rankmajor.pack(rankmajor.quantise(tiles), INFO), save({"tiles": tiles})
    key = f"sets/{rankmajor.sha256(packed)}.safetensors"
    master_key = f"masters/{hashlib.sha256(master).hexdigest()}.safetensors"
    api.services.objects.put(key, packed)
    api.services.objects.put(master_key, master)
    owner = api.admin["Authorization"].split("_")[1]
    with api.services.db.begin() as session:
        sets.claim_name(session, "real", owner)
        job = jobs.submit(session, owner_id=owner, dataset="digits", name="real", condense={}, evaluate={})
        jobs.claim(session, job.id, "worker", 90)
        assert sets.publish(
            session,
            job.id,
            1,
            object_key=key,
            object_bytes=len(packed),
            master_key=master_key,
            build_manifest=partial(describe, packed),
        )
    return key, master_key, packed


def found(api: Api) -> list[Fault]:
    return list(verify_objects(api.services.db, api.services.objects))


@sqlite_only
def test_all_is_right(api: Api) -> None:
    published(api)
    assert found(api) == []


@sqlite_only
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_an_object_follows_from_its_master(api: Api, harm: str) -> None:
    key, _, packed = published(api)
    objects = api.services.objects
    if harm == "missing":
        objects.delete(key)
    else:
        objects.put(key, packed[:-1] + b"x")
    assert found(api) == [Fault(key, harm, "set real@1", True)]
    assert objects.get(key) == packed


@sqlite_only
def test_what_was_swept_comes_back_and_what_is_lost_is_told(api: Api) -> None:
    key, master, packed = published(api)
    objects = api.services.objects
    objects.copy(key, TRASH + key)
    for lost in (key, master):
        objects.delete(lost)
    assert found(api) == [
        Fault(master, "missing", "set real@1 (its master)", False),
        Fault(key, "missing", "set real@1", True),
    ]
    assert objects.get(key) == packed


def test_a_set_whose_bytes_are_gone_is_503_with_a_reason(toy: Published) -> None:
    services = toy.api.services
    key = services.catalog.find("toy@2")[0].object_key
    services.objects.delete(key)
    for url in (
        "/subsets/2?set=toy",
        "/subsets/2?set=toy@2",
        "/v1/sets/toy@2/ranks/1",
        "/v1/sets/toy/preview.png",
    ):
        with structlog.testing.capture_logs() as log:
            answer = toy.get(url)
        assert (answer.status_code, answer.json()["code"]) == (503, "set-unreadable")
        assert "missing" in answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) > 0
        assert any("verify-objects" in line["event"] for line in log)
    assert toy.get("/subsets/2?set=toy@1").status_code == 200
    services.objects.put(key, toy.objects[1][:-1] + b"x")
    answer = toy.get("/subsets/4?set=toy@2")
    assert (answer.status_code, answer.json()["code"]) == (503, "set-unreadable")
    assert "damaged" in answer.json()["detail"]


def test_two_admins_who_revoke_each_other_leave_one(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    first = api.admin
    with api.services.db.begin() as session:
        for admin in keys.admins(session):
            if admin.id != first["Authorization"].split("_")[1]:
                keys.revoke(session, admin.id)
    second = api.key("admin")
    both = [first, second]
    barrier = threading.Barrier(2)
    revoke = keys.revoke

    def slowly(*given: Any) -> None:
        """Whoever has decided gives the other one time to decide as well, if that could be."""
        with suppress(threading.BrokenBarrierError):
            barrier.wait(0.5)
        revoke(*given)

    monkeypatch.setattr(keys, "revoke", slowly)
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(
                lambda pair: api.client.delete(
                    f"/v1/keys/{pair[1]['Authorization'].split('_')[1]}", headers=pair[0]
                ),
                [(both[0], both[1]), (both[1], both[0])],
            )
        )
    assert sorted(answer.status_code for answer in answers)[0] == 204
    with api.services.db.read() as session:
        assert len(keys.admins(session)) == 1
