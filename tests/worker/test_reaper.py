"""The reaper: vanished workers and lost wake-ups."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import update

from server.store import jobs
from server.store.states import JobState
from server.store.tables import Job, utcnow
from server.wakeup import Wakeup
from tests.worker.conftest import Stores
from worker.reaper import Reaper


class RecordedWakeup(Wakeup):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, job_id: str) -> None:
        self.sent.append(job_id)


def expire(stores: Stores, job_id: str) -> None:
    with stores.database.begin() as session:
        jobs.claim(session, job_id, "vanished", 90)
        session.execute(
            update(Job).where(Job.id == job_id).values(lease_expires_at=utcnow() - timedelta(seconds=1))
        )


def test_an_expired_lease_is_requeued_and_a_worker_woken(stores: Stores) -> None:
    job_id, wakeup = stores.submit(), RecordedWakeup()
    expire(stores, job_id)
    Reaper(stores.settings, stores.database, stores.objects, wakeup, stores.stop).look()
    assert stores.job(job_id).state is JobState.QUEUED
    assert wakeup.sent == [job_id]


def test_a_job_that_always_vanishes_fails(stores: Stores) -> None:
    job_id, wakeup = stores.submit(), RecordedWakeup()
    reaper = Reaper(stores.settings, stores.database, stores.objects, wakeup, stores.stop)
    for _ in range(stores.settings.max_attempts):
        expire(stores, job_id)
        reaper.look()
    job = stores.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "too-many-attempts")


def test_a_lease_that_is_renewed_is_left_alone(stores: Stores) -> None:
    job_id, wakeup = stores.submit(), RecordedWakeup()
    with stores.database.begin() as session:
        jobs.claim(session, job_id, "alive", 90)
    Reaper(stores.settings, stores.database, stores.objects, wakeup, stores.stop).look()
    assert stores.job(job_id).state is JobState.RUNNING
    assert wakeup.sent == []
