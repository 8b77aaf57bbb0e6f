"""The sweep deletes what nothing refers to, and never what somebody is just writing."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from server import cli
from server.settings import Settings
from server.store import datasets, holds, jobs, sets
from server.store.db import Database
from server.store.holds import HoldLostError, holding
from server.store.objects import ObjectStore, open_objects
from server.store.sweep import sweep
from server.store.tables import ObjectHold, utcnow
from tests.server.conftest import sqlite_only
from tests.server.test_jobs import claimed, submit

DAY = 24 * 3600.0
FACTS = {"name": "x", "channels": 1, "image_size": 8, "classes": ["a", "b"], "smallest_class": 1}


@pytest.fixture(params=["file", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    url = request.getfixturevalue("s3").url if request.param == "s3" else f"file://{tmp_path}/objects"
    return open_objects(url)


def keys(objects: ObjectStore) -> set[str]:
    return {
        stored.key
        for folder in ("jobs", "pools", "datasets", "sets", "masters", "other")
        for stored in objects.list(folder)
    }


def add_dataset(db: Database, owner: str, key: str) -> None:
    with db.begin() as session:
        datasets.add(
            session,
            owner_id=owner,
            name="x",
            kind="npz",
            sha256=key,
            size=1,
            object_key=key,
            facts=FACTS,
        )


def populate(db: Database, owner: str, objects: ObjectStore) -> tuple[set[str], set[str]]:
    """Objects of every kind; the keys that are needed, and those that are not."""
    add_dataset(db, owner, "datasets/used")
    running, done, gone = claimed(db, owner), claimed(db, owner), claimed(db, owner)
    with db.begin() as session:
        for job, name in ((done, "published"), (gone, "withdrawn")):
            published = sets.publish(
                session,
                job.id,
                1,
                object_key=f"sets/{name}",
                object_bytes=1,
                master_key=f"masters/{name}",
                build_manifest=lambda name, version: {},
            )
            assert published is not None
        sets.withdraw(session, "toy", 2)
    waiting = submit(db, owner)
    needed = {
        "datasets/used",
        "sets/published",
        "masters/published",
        "sets/withdrawn",
        "masters/withdrawn",
        f"jobs/{running.id}/1-3.checkpoint",
        f"jobs/{waiting}/1-1.checkpoint",
        "other/thing",
    }
    garbage = {
        "datasets/crashed",
        "sets/crashed",
        "masters/crashed",
        f"jobs/{done.id}/1-3.checkpoint",
        "jobs/job_of_no_one/trials.json",
    }
    for key in needed | garbage:
        objects.put(key, b"x")
    return needed, garbage


def test_what_nothing_refers_to_is_deleted(db: Database, owner: str, objects: ObjectStore) -> None:
    needed, garbage = populate(db, owner, objects)
    assert list(sweep(db, objects, DAY)) == [], "everything is new"
    assert {found.key for found in sweep(db, objects, -DAY, dry_run=True)} == garbage
    assert keys(objects) == needed | garbage
    assert {swept.key for swept in sweep(db, objects, -DAY)} == garbage
    assert keys(objects) == needed
    assert list(sweep(db, objects, -DAY)) == []


def test_networks_are_kept_for_as_long_as_they_are_used(
    db: Database, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an age of their own, since no row refers to them; a longer age of all holds for them too."""
    objects.put("pools/0a1b", b"x")
    assert list(sweep(db, objects, -DAY)) == []
    monkeypatch.setattr("server.store.sweep.POOL_SECONDS", -DAY)
    assert list(sweep(db, objects, DAY)) == []
    assert [swept.key for swept in sweep(db, objects, -DAY)] == ["pools/0a1b"]
    assert keys(objects) == set()


def test_a_sweep_that_is_stopped_deletes_no_more(db: Database, owner: str, objects: ObjectStore) -> None:
    needed, garbage = populate(db, owner, objects)
    stop = threading.Event()
    stop.set()
    assert list(sweep(db, objects, -DAY, stop=stop)) == []
    assert keys(objects) == needed | garbage


def test_what_is_being_written_stays_until_it_is_given_up(
    db: Database, owner: str, objects: ObjectStore
) -> None:
    objects.put("datasets/old", b"x")
    with holding(db, ["datasets/old", "sets/new"]) as hold:
        assert list(sweep(db, objects, -DAY)) == []
        with db.begin() as session:
            hold.give_up(session)
            assert not holds.is_held(session, "datasets/old")
            datasets.add(
                session,
                owner_id=owner,
                name="x",
                kind="npz",
                sha256="0",
                size=1,
                object_key="datasets/old",
                facts=FACTS,
            )
        assert list(sweep(db, objects, -DAY)) == []
    assert objects.head("datasets/old") == 1


def test_a_write_that_fails_gives_its_hold_up(db: Database, objects: ObjectStore) -> None:
    objects.put("datasets/half", b"x")
    with pytest.raises(OSError, match="full"), holding(db, ["datasets/half"]):
        raise OSError("disk full")
    assert [swept.key for swept in sweep(db, objects, -DAY)] == ["datasets/half"]


def test_the_hold_of_a_process_that_died_expires_and_is_refused_then(
    db: Database, objects: ObjectStore
) -> None:
    objects.put("datasets/old", b"x")

    def write_too_slowly() -> None:
        with holding(db, ["datasets/old"]) as hold:
            with db.begin() as session:
                session.execute(update(ObjectHold).values(expires_at=utcnow() - timedelta(seconds=1)))
            assert [swept.key for swept in sweep(db, objects, -DAY)] == ["datasets/old"]
            with db.begin() as session:
                hold.give_up(session)

    with pytest.raises(HoldLostError, match="written again"):
        write_too_slowly()


def test_a_write_that_begins_while_its_object_is_deleted_writes_it_again(
    db: Database, owner: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is old and nobody's; just when the sweep has decided, the same bytes are uploaded."""
    key = "datasets/again"
    objects.put(key, b"x")
    begun = threading.Event()

    def upload() -> None:
        with holding(db, [key]) as hold:
            begun.set()
            if objects.head(key) is None:
                objects.put(key, b"x")
            with db.begin() as session:
                hold.give_up(session)
                datasets.add(
                    session,
                    owner_id=owner,
                    name="x",
                    kind="npz",
                    sha256="0",
                    size=1,
                    object_key=key,
                    facts=FACTS,
                )

    writer = threading.Thread(target=upload)
    delete = objects.delete

    def delete_meanwhile(key: str) -> None:
        writer.start()
        began = begun.wait(0.5)  # all the time that a writer needs to slip in, if it could
        delete(key)
        assert not began, "a hold was taken of an object that is being deleted"

    monkeypatch.setattr(objects, "delete", delete_meanwhile)
    assert [swept.key for swept in sweep(db, objects, -DAY)] == [key]
    writer.join(30)
    assert not writer.is_alive()
    assert objects.head(key) == 1


def test_a_reference_that_appears_after_the_first_look_counts(
    db: Database, owner: str, objects: ObjectStore
) -> None:
    for name in ("a", "b"):
        objects.put(f"datasets/{name}", b"x")
    sweeping = sweep(db, objects, -DAY)
    first = next(sweeping).key
    (other,) = {"datasets/a", "datasets/b"} - {first}
    add_dataset(db, owner, other)
    assert list(sweeping) == []
    assert objects.head(other) == 1


@sqlite_only
def test_interrupted_writes_into_a_folder_are_deleted(db: Database, tmp_path: Path) -> None:
    objects = open_objects(f"file://{tmp_path}/objects")
    objects.put("sets/a", b"x")
    unfinished = tmp_path / "objects/sets/a#123"
    unfinished.write_bytes(b"half")
    list(sweep(db, objects, DAY))
    assert unfinished.exists()
    list(sweep(db, objects, -DAY))
    assert not unfinished.exists()


@sqlite_only
def test_the_command_tells_what_it_deletes(
    db: Database, owner: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MDC_SWEEP_AGE_SECONDS", "0")
    objects = open_objects(Settings().objects_url)
    objects.put("sets/crashed", b"1234")
    dry = CliRunner().invoke(cli.app, ["sweep", "--dry-run"])
    assert (dry.exit_code, dry.stdout, dry.stderr) == (
        0,
        "sets/crashed 4\n",
        "1 objects, 4 bytes would be deleted\n",
    )
    assert objects.head("sets/crashed") == 4
    done = CliRunner().invoke(cli.app, ["sweep"])
    assert done.stderr == "1 objects, 4 bytes deleted\n"
    assert objects.head("sets/crashed") is None


def test_checkpoints_stay_with_a_job_that_goes_on(db: Database, owner: str, objects: ObjectStore) -> None:
    job = claimed(db, owner)
    objects.put(f"jobs/{job.id}/1-1.checkpoint", b"x")
    with db.begin() as session:
        jobs.requeue(session, job.id, 1, "killed")
    assert list(sweep(db, objects, -DAY)) == []
    with db.begin() as session:
        jobs.cancel(session, job.id)
    assert [swept.key for swept in sweep(db, objects, -DAY)] == [f"jobs/{job.id}/1-1.checkpoint"]
