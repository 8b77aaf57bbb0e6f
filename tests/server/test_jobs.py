"""The life of a job in the database, on both databases."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from time import sleep

import pytest
from sqlalchemy import select, update

from server.store import jobs, sets
from server.store.db import Database
from server.store.states import ALLOWED, ENDED, HELD, JobState
from server.store.tables import Job, JobEvent, utcnow
from tests.server.conftest import make_owner

LEASE = 90.0


def submit(db: Database, owner: str, name: str = "toy") -> str:
    with db.begin() as session:
        assert sets.claim_name(session, name, owner)
        return jobs.submit(
            session, owner_id=owner, dataset="digits", name=name, condense={"ipc": 3}, evaluate={}
        ).id


def claimed(db: Database, owner: str) -> Job:
    job_id = submit(db, owner)
    with db.begin() as session:
        job = jobs.claim(session, job_id, "worker-1", LEASE)
    assert job is not None
    return job


def stored(db: Database, job_id: str) -> Job:
    with db.read() as session:
        job = jobs.get(session, job_id)
    assert job is not None
    return job


def history(db: Database, job_id: str) -> list[str]:
    with db.read() as session:
        query = select(JobEvent.state).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
        return list(session.scalars(query))


def in_state(db: Database, owner: str, state: JobState) -> Job:
    """A job that was brought to `state` by the ordinary functions."""
    if state is JobState.QUEUED:
        return stored(db, submit(db, owner))
    job = claimed(db, owner)
    with db.begin() as session:
        if state in (JobState.CANCELING, JobState.CANCELED):
            jobs.cancel(session, job.id)
        if state is JobState.CANCELED:
            jobs.cancel_done(session, job.id, job.attempt)
        if state is JobState.FAILED:
            jobs.fail(session, job.id, job.attempt, "x", "y")
        if state is JobState.SUCCEEDED:
            jobs.succeed(session, job.id, job.attempt, 1)
    job = stored(db, job.id)
    assert job.state is state
    return job


def test_a_claim_takes_the_lease_and_the_oldest_job_comes_first(db: Database, owner: str) -> None:
    first, second = submit(db, owner), submit(db, owner)
    with db.begin() as session:
        job = jobs.claim(session, None, "worker-1", LEASE)
    assert job is not None
    assert (job.id, job.state, job.attempt, job.lease_owner) == (first, JobState.RUNNING, 1, "worker-1")
    assert job.lease_expires_at is not None
    assert timedelta(seconds=LEASE - 30) < job.lease_expires_at - utcnow() <= timedelta(seconds=LEASE)
    assert job.started_at is not None
    with db.begin() as session:
        assert jobs.claim(session, first, "worker-2", LEASE) is None
        following = jobs.claim(session, None, "worker-2", LEASE)
        assert following is not None
        assert following.id == second
        assert jobs.claim(session, None, "worker-3", LEASE) is None


def test_owners_take_turns(db: Database, owner: str) -> None:
    """Who has submitted much waits no less than who has submitted little, and nobody longer than a round."""
    other, third = make_owner(db), make_owner(db)

    def submit_later(owner: str, name: str) -> str:
        sleep(0.002)  # ids tell the order of milliseconds
        return submit(db, owner, name)

    many = [submit_later(owner, "a") for _ in range(4)]
    few = [submit_later(other, "b") for _ in range(2)]
    one = submit_later(third, "c")

    def take() -> str | None:
        with db.begin() as session:
            job = jobs.claim(session, None, "worker", LEASE)
            return None if job is None else job.id

    def finish(job_id: str) -> None:
        with db.begin() as session:
            assert jobs.succeed(session, job_id, 1, 1) is not None

    # One worker: every claim is made when the job before has ended.
    taken = []
    for _ in range(4):
        job_id = take()
        assert job_id is not None
        taken.append(job_id)
        finish(job_id)
    assert taken == [many[0], few[0], one, many[1]]
    # Several: whoever has nothing running goes first, however long ago the others were served.
    assert take() == few[1]
    assert take() == many[2]
    last = submit_later(other, "b")
    late = submit_later(third, "c")
    assert take() == late
    finish(few[1])
    assert take() == last
    assert take() == many[3]
    assert take() is None


def test_of_concurrent_claims_one_gets_the_job(db: Database, owner: str) -> None:
    workers, waiting = 6, 3
    for _ in range(waiting):
        submit(db, owner)
    barrier = Barrier(workers)

    def take(number: int) -> str | None:
        barrier.wait()
        with db.begin() as session:
            job = jobs.claim(session, None, f"worker-{number}", LEASE)
            return None if job is None else job.id

    with ThreadPoolExecutor(workers) as pool:
        taken = [job_id for job_id in pool.map(take, range(workers)) if job_id is not None]
    assert len(taken) == len(set(taken)) == waiting


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize("target", list(JobState))
def test_move_follows_the_table_and_nothing_else(
    db: Database, owner: str, state: JobState, target: JobState
) -> None:
    job = in_state(db, owner, state)
    before = history(db, job.id)
    with db.begin() as session:
        moved = jobs.move(session, job.id, target)
    assert (moved is not None) == (target in ALLOWED[state])
    assert stored(db, job.id).state is (target if moved else state)
    assert history(db, job.id) == ([*before, target.value] if moved else before)


def test_what_a_former_attempt_writes_is_refused(db: Database, owner: str) -> None:
    job = claimed(db, owner)
    with db.begin() as session:
        assert jobs.requeue(session, job.id, 1, "killed") is JobState.QUEUED
        assert jobs.claim(session, job.id, "worker-2", LEASE) is not None
    before = stored(db, job.id)
    with db.begin() as session:
        assert jobs.renew(session, job.id, 1, LEASE) is None
        assert not jobs.report(session, job.id, 1, {"step": 9})
        assert not jobs.save_checkpoint(session, job.id, 1, "jobs/old", 9)
        assert jobs.requeue(session, job.id, 1, "late") is None
        assert not jobs.fail(session, job.id, 1, "late", "late")
        assert not jobs.cancel_done(session, job.id, 1)
        assert jobs.state_of(session, job.id, 1) is None
        assert jobs.held(session, job.id, 1) is None
    after = stored(db, job.id)
    for column in Job.__mapper__.column_attrs.keys():  # noqa: SIM118 (no mapping: iterating it yields attributes)
        assert getattr(after, column) == getattr(before, column)
    with db.begin() as session:
        assert jobs.renew(session, job.id, 2, LEASE) is JobState.RUNNING
        assert jobs.report(session, job.id, 2, {"step": 9})
        assert jobs.save_checkpoint(session, job.id, 2, "jobs/new", 9)
    after = stored(db, job.id)
    assert (after.progress, after.checkpoint_key, after.checkpoint_step) == ({"step": 9}, "jobs/new", 9)


def test_a_requeued_job_keeps_its_checkpoint_and_loses_its_lease(db: Database, owner: str) -> None:
    job = claimed(db, owner)
    with db.begin() as session:
        jobs.save_checkpoint(session, job.id, 1, "jobs/a", 4)
        jobs.requeue(session, job.id, 1, "killed")
    queued = stored(db, job.id)
    assert (queued.checkpoint_key, queued.lease_owner, queued.lease_expires_at) == ("jobs/a", None, None)
    with db.begin() as session:
        again = jobs.claim(session, None, "worker-2", LEASE)
    assert again is not None
    assert (again.attempt, again.started_at, again.progress) == (2, job.started_at, None)


def test_after_the_last_attempt_a_job_fails_and_says_why(db: Database, owner: str) -> None:
    job_id = submit(db, owner)
    for attempt in (1, 2):
        with db.begin() as session:
            jobs.claim(session, job_id, "worker", LEASE)
            state = jobs.requeue(session, job_id, attempt, "killed by SIGKILL", max_attempts=2)
    assert state is JobState.FAILED
    job = stored(db, job_id)
    assert job.error_code == "too-many-attempts"
    assert job.error_detail is not None
    assert "2 times" in job.error_detail
    assert "SIGKILL" in job.error_detail
    assert job.ended_at is not None


def test_cancel(db: Database, owner: str) -> None:
    queued, running = submit(db, owner), claimed(db, owner)
    with db.begin() as session:
        for job_id, state in ((queued, JobState.CANCELED), (running.id, JobState.CANCELING)):
            canceled = jobs.cancel(session, job_id)
            assert canceled is not None
            assert canceled.state is state
            assert jobs.cancel(session, job_id) is None
        assert jobs.renew(session, running.id, 1, LEASE) is JobState.CANCELING
        assert jobs.report(session, running.id, 1, {"step": 1})
        assert jobs.requeue(session, running.id, 1, "killed") is JobState.CANCELED
    assert history(db, running.id) == ["queued", "running", "canceling", "canceled"]
    assert stored(db, running.id).ended_at is not None


def test_expired_names_the_jobs_whose_lease_has_run_out(db: Database, owner: str) -> None:
    job, other = claimed(db, owner), in_state(db, owner, JobState.CANCELING)
    for state in [*ENDED, JobState.QUEUED]:
        in_state(db, owner, state)
    with db.read() as session:
        assert jobs.expired(session, utcnow()) == []
        late = jobs.expired(session, utcnow() + timedelta(seconds=LEASE + 1))
        assert [found.id for found in late] == sorted([job.id, other.id])
        assert all(found.state in HELD for found in late)


def test_a_transaction_that_fails_leaves_nothing(db: Database, owner: str) -> None:
    job_id = submit(db, owner)

    def claim_then_crash() -> None:
        with db.begin() as session:
            jobs.claim(session, job_id, "worker", LEASE)
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        claim_then_crash()
    assert stored(db, job_id).state is JobState.QUEUED
    assert history(db, job_id) == ["queued"]


RACER = """
import sys
from server.store import jobs
from server.store.db import Database

db = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
taken = []
while True:
    with db.begin() as session:
        job = jobs.claim(session, None, "racer", 90)
    if job is None:
        break
    taken.append(job.id)
print(*taken)
"""


def test_processes_that_empty_a_queue_together_never_get_the_same_job(
    db: Database, owner: str, database_url: str
) -> None:
    queued = {submit(db, owner) for _ in range(60)}
    command = [sys.executable, "-c", RACER, database_url]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [job_id for racer in racers for job_id in racer.communicate(timeout=120)[0].split()]
    assert len(taken) == len(queued)
    assert set(taken) == queued
    assert {tuple(history(db, job_id)) for job_id in queued} == {("queued", "running")}


def test_the_time_of_all_attempts_counts_and_waiting_does_not(db: Database, owner: str) -> None:
    job = claimed(db, owner)
    assert job.claimed_at is not None
    assert job.lease_expires_at is not None
    assert jobs.running_seconds(job, job.claimed_at + timedelta(seconds=5)) == 5
    vanished = jobs.running_seconds(job, job.claimed_at + timedelta(days=1))
    assert vanished == (job.lease_expires_at - job.claimed_at).total_seconds()
    with db.begin() as session:
        hour_ago = utcnow() - timedelta(hours=1)
        session.execute(update(Job).values(claimed_at=hour_ago))
        jobs.requeue(session, job.id, 1, "killed")
    requeued = stored(db, job.id)
    assert 3600 <= requeued.runtime_s < 3660
    with db.begin() as session:
        again = jobs.claim(session, job.id, "worker-2", LEASE)
    assert again is not None
    assert again.claimed_at is not None
    assert jobs.running_seconds(again, again.claimed_at) == requeued.runtime_s
