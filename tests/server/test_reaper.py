"""The reaper: vanished workers, lost wake-ups, and periodic tasks that one process at a time does."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import update

from server.jobs.reaper import UPLOAD_SECONDS, WAKE_MOST, Reaper
from server.jobs.wakeup import Wakeup
from server.settings import Settings
from server.store import jobs, periodic
from server.store.db import Database
from server.store.objects import ObjectStore, open_objects
from server.store.states import JobState
from server.store.tables import Job, PeriodicTask, utcnow
from tests.server.test_jobs import stored, submit


class RecordedWakeup(Wakeup):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, job_id: str) -> None:
        self.sent.append(job_id)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def objects(settings: Settings) -> ObjectStore:
    return open_objects(settings.objects_url)


@pytest.fixture
def wakeup() -> RecordedWakeup:
    return RecordedWakeup()


@pytest.fixture
def reaper(settings: Settings, db: Database, objects: ObjectStore, wakeup: RecordedWakeup) -> Reaper:
    return Reaper(settings, db, objects, wakeup)


def expire(db: Database, job_id: str) -> None:
    with db.begin() as session:
        jobs.claim(session, job_id, "vanished", 90)
        session.execute(
            update(Job).where(Job.id == job_id).values(lease_expires_at=utcnow() - timedelta(seconds=1))
        )


def make_due(db: Database) -> None:
    with db.begin() as session:
        session.execute(update(PeriodicTask).values(begun_at=utcnow() - timedelta(days=1)))


def test_an_expired_lease_is_requeued_and_a_worker_woken(
    db: Database, owner: str, reaper: Reaper, wakeup: RecordedWakeup
) -> None:
    expired, alive = submit(db, owner), submit(db, owner)
    reaper.look()
    wakeup.sent.clear()
    expire(db, expired)
    with db.begin() as session:
        jobs.claim(session, alive, "alive", 90)
    make_due(db)
    reaper.look()
    assert stored(db, expired).state is JobState.QUEUED
    assert stored(db, alive).state is JobState.RUNNING
    assert expired in wakeup.sent
    assert alive not in wakeup.sent


def test_a_job_that_always_vanishes_fails_and_leaves_nothing(
    db: Database, owner: str, reaper: Reaper, settings: Settings, objects: ObjectStore
) -> None:
    job_id = submit(db, owner)
    objects.put(f"jobs/{job_id}/1-1.checkpoint", b"x")
    for _ in range(settings.max_attempts):
        expire(db, job_id)
        reaper.look()
        make_due(db)
    job = stored(db, job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "too-many-attempts")
    assert list(objects.list("jobs")) == []


def test_what_waits_is_published_again_but_seldom(
    db: Database, owner: str, reaper: Reaper, wakeup: RecordedWakeup
) -> None:
    waiting = {submit(db, owner) for _ in range(WAKE_MOST + 2)}
    for _ in range(3):
        reaper.look()
    assert len(wakeup.sent) == WAKE_MOST
    assert set(wakeup.sent) < waiting
    make_due(db)
    reaper.look()
    assert len(wakeup.sent) == 2 * WAKE_MOST


def test_unfinished_uploads_of_a_killed_api_are_deleted(
    reaper: Reaper, settings: Settings, db: Database
) -> None:
    settings.uploads_dir.mkdir(parents=True)
    old, new = (settings.uploads_dir / f"upload-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = utcnow().timestamp() - UPLOAD_SECONDS - 60
    os.utime(old, (long_ago, long_ago))
    reaper.start()
    reaper.stop()
    assert not old.exists()
    assert new.exists()


def test_of_many_processes_one_takes_a_chore(db: Database) -> None:
    processes = 6
    barrier = Barrier(processes)

    def attempt(_: int) -> bool:
        barrier.wait()
        with db.begin() as session:
            return periodic.take(session, "x", 60)

    for _ in range(2):  # its row is made, then changed
        with ThreadPoolExecutor(processes) as pool:
            assert sum(pool.map(attempt, range(processes))) == 1
        make_due(db)


@pytest.mark.parametrize(("since", "due"), [(59, False), (61, True), (-59, False), (-61, True)])
def test_a_chore_is_due_after_its_time_or_when_a_clock_was_wrong(db: Database, since: int, due: bool) -> None:
    with db.begin() as session:
        assert periodic.take(session, "x", 60)
        session.execute(update(PeriodicTask).values(begun_at=utcnow() - timedelta(seconds=since)))
    with db.begin() as session:
        assert periodic.take(session, "x", 60) is due
        assert periodic.take(session, "y", 60)
