"""Publishing, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Barrier
from typing import Any

import pytest

from server.store import events, jobs, sets
from server.store.db import Database
from server.store.states import JobState
from server.store.tables import CondensedSet
from tests.server.conftest import make_owner


def start(db: Database, owner: str, name: str = "toy") -> str:
    with db.begin() as session:
        assert sets.claim_name(session, name, owner)
        job = jobs.submit(session, owner_id=owner, dataset="digits", name=name, condense={}, evaluate={})
        jobs.claim(session, job.id, "worker", 90)
        return job.id


def manifest(name: str, version: int) -> dict[str, Any]:
    return {"name": name, "version": version}


def publish(db: Database, job_id: str, attempt: int = 1, advice: str | None = None) -> CondensedSet | None:
    with db.begin() as session:
        return sets.publish(
            session,
            job_id,
            attempt,
            object_key="objects/a",
            object_bytes=10,
            master_key="masters/a",
            build_manifest=manifest,
            advice=advice,
        )


def test_publishing_ends_the_job_and_counts_versions_per_name(db: Database, owner: str) -> None:
    for name, version in (("toy", 1), ("toy", 2), ("other", 1)):
        job_id = start(db, owner, name)
        published = publish(db, job_id)
        assert published is not None
        assert (published.name, published.version) == (name, version)
        with db.read() as session:
            job = jobs.get(session, job_id)
            found = sets.get(session, name)
        assert job is not None
        assert (job.state, job.set_version) == (JobState.SUCCEEDED, version)
        assert job.ended_at is not None
        assert found is not None
        assert found.manifest == {"name": name, "version": version}
    with db.read() as session:
        first = sets.get(session, "toy", 1)
        assert first is not None
        assert first.version == 1
        assert sets.get(session, "toy", 3) is None
        assert [(row.name, row.version) for row in sets.page(session, after=None, limit=9)] == [
            ("other", 1),
            ("toy", 2),
        ]
        assert [row.name for row in sets.page(session, after="other", limit=9)] == ["toy"]


@pytest.mark.parametrize("how", ["former attempt", "canceled", "published"])
def test_a_refused_publication_changes_nothing(db: Database, owner: str, how: str) -> None:
    job_id = start(db, owner)
    with db.begin() as session:
        if how == "former attempt":
            jobs.requeue(session, job_id, 1, "killed")
            jobs.claim(session, job_id, "worker", 90)
        elif how == "canceled":
            jobs.cancel(session, job_id)
    if how == "published":
        publish(db, job_id)
    assert publish(db, job_id) is None
    with db.read() as session:
        found = sets.get(session, "toy")
    assert (None if found is None else found.version) == (1 if how == "published" else None)


def test_versions_of_concurrent_publications_have_no_gap(db: Database, owner: str) -> None:
    started = [start(db, owner) for _ in range(4)]
    barrier = Barrier(len(started))

    def at_once(job_id: str) -> int:
        barrier.wait()
        published = publish(db, job_id)
        assert published is not None
        return published.version

    with ThreadPoolExecutor(len(started)) as pool:
        assert sorted(pool.map(at_once, started)) == [1, 2, 3, 4]


def test_a_manifest_that_cannot_be_built_publishes_nothing(db: Database, owner: str) -> None:
    job_id = start(db, owner)

    def broken(name: str, version: int) -> dict[str, Any]:
        raise RuntimeError("no manifest")

    def attempt() -> None:
        with db.begin() as session:
            sets.publish(
                session,
                job_id,
                1,
                object_key="a",
                object_bytes=1,
                master_key="b",
                build_manifest=broken,
            )

    with pytest.raises(RuntimeError, match="no manifest"):
        attempt()
    published = publish(db, job_id)
    assert published is not None
    assert published.version == 1


@pytest.mark.parametrize(("advice", "detail"), [(None, "version 1"), ("Not 3.", "version 1. Not 3.")])
def test_a_jobs_last_event_tells_the_advice(
    db: Database, owner: str, advice: str | None, detail: str
) -> None:
    job_id = start(db, owner)
    publish(db, job_id, advice=advice)
    with db.read() as session:
        last = events.page(session, job_id, after=0, limit=9)[-1]
    assert (last.state, last.detail) == ("succeeded", detail)


def test_a_name_belongs_to_who_used_it_first(db: Database, owner: str) -> None:
    other = make_owner(db)
    with db.begin() as session:
        assert sets.claim_name(session, "toy", owner)
        assert not sets.claim_name(session, "toy", other)
        assert sets.claim_name(session, "toy", owner)
        assert sets.claim_name(session, "theirs", other)


def test_a_withdrawn_version_is_gone_and_never_replaced(db: Database, owner: str) -> None:
    def withdraw(version: int) -> None:
        with db.begin() as session:
            sets.withdraw(session, "toy", version)

    def listed() -> list[tuple[str, int]]:
        with db.read() as session:
            return [(row.name, row.version) for row in sets.page(session, after=None, limit=9)]

    def moment() -> datetime | None:
        with db.read() as session:
            row = sets.get(session, "toy", 2)
        assert row is not None
        return row.withdrawn_at

    for _ in range(2):
        publish(db, start(db, owner))
    withdraw(2)
    assert listed() == [("toy", 1)]
    first = moment()
    assert first is not None
    withdraw(2)
    assert moment() == first
    publish(db, start(db, owner))
    assert listed() == [("toy", 3)]
    withdraw(1)
    withdraw(3)
    assert listed() == []
    with db.read() as session:
        assert sets.latest_version(session, "toy") is None
        assert sets.is_known(session, "toy")
        assert not sets.is_known(session, "other")
        assert [sets.is_withdrawn(session, "toy", version) for version in (1, 2, 3, 4)] == [True] * 3 + [
            False
        ]
