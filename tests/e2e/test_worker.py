"""`python -m worker` as it runs in production, on both sizes: wake-ups of every kind, and a regular stop."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest
import redis

from server.jobs.wakeup import QUEUE, TASK, Wakeup
from server.settings import Settings
from server.store import jobs
from server.store.states import JobState
from tests.conftest import both_sizes
from tests.server.test_wakeup import waiting
from tests.services import free_port, process
from tests.worker.conftest import Stores, stores  # noqa: F401 (a fixture)

pytestmark = pytest.mark.e2e


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """Started, listening or not; at the end asked to stop, which it does without an error."""
    started = subprocess.Popen([sys.executable, "-m", "worker"], stdin=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        assert started.wait(120) == 0


@both_sizes
def test_wake_ups_that_are_lost_doubled_late_or_wrong_do_no_harm(stores: Stores) -> None:  # noqa: F811
    wakeup = Wakeup(stores.settings)
    wakeup.prepare()
    lost = stores.submit(outer_loops=2)
    with worker():
        # Nobody has sent a message about it: the worker looks by itself when it starts.
        assert stores.wait_for(lost, lambda job: job.ended_at is not None).state is JobState.SUCCEEDED
        doubled = stores.submit(outer_loops=2)
        for job_id in (doubled, doubled, lost, "job_of_no_one"):
            wakeup.send(job_id)
        stores.wait_for(doubled, lambda job: job.ended_at is not None)

        going_on = stores.submit(outer_loops=100_000)
        wakeup.send(going_on)
        stores.wait_for(going_on, lambda job: (job.checkpoint_step or 0) >= 1)
    wakeup.close()
    assert (stores.job(doubled).state, stores.job(doubled).attempt) == (JobState.SUCCEEDED, 1)
    # The worker was asked to stop in the middle of it: nothing is lost, and nobody waits for a lease.
    stopped = stores.job(going_on)
    assert (stopped.state, stopped.attempt, stopped.interruptions) == (JobState.QUEUED, 1, 0)
    assert stopped.lease_owner is None
    assert stopped.checkpoint_key is not None
    assert stores.objects.head(stopped.checkpoint_key)


NO_HEADERS: dict[str, object] = {}
ENVELOPE = {"properties": {"delivery_tag": "1", "delivery_info": {}}, "headers": NO_HEADERS, "body": ""}
HEADERS: list[object] = [None, 1, [], {"task": []}, {"task": None, "id": 1}, {"task": "no.such", "id": "1"}]
MORE: list[dict[str, object]] = [{}, {"eta": "never"}, {"expires": []}, {"timelimit": 7}]
MORE.append({"lang": 1, "id": None})
WRONG = [
    *("", "null", "[]", "7", '"text"', "{", "\u0000", "[" * 3000, '{"properties": 1}', '{"properties": {}}'),
    *('{"properties": {"delivery_tag": "1", "body_encoding": "base64"}, "body": "%"}', json.dumps(ENVELOPE)),
    *(
        json.dumps({**ENVELOPE, "headers": headers, "body": body, "content-type": kind})
        for headers in HEADERS
        for body, kind in (
            ("[", "application/json"),
            ("[[],{},{}]", "application/json"),
            ("x", "application/x"),
        )
    ),
    *(
        json.dumps(
            {**ENVELOPE, "headers": {"task": TASK, "id": "1"} | more, "body": body, "content-type": kind}
        )
        for more in MORE
        for body, kind in (
            *(("[", "application/json"), ("7", "application/json"), ("[[],{},{}]", "application/json")),
            *(("[[1, 2, 3], {}, {}]", "application/json"), ("\x80\x04N.", "application/x-python-serialize")),
        )
    ),
    "x" * 2**21,
]
"""What is no message, or none that a worker of ours gets."""


def put(settings: Settings, text: str) -> None:
    """Into the queue, past Celery."""
    url = settings.broker_url
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            client.lpush(f"{settings.broker_prefix}{QUEUE}", text)
        return
    columns = "(visible, timestamp, payload, version, queue_id)"
    with closing(sqlite3.connect(url.removeprefix("sqla+sqlite:///"), timeout=30)) as connection:
        connection.execute(
            f"INSERT INTO kombu_message {columns} SELECT 1, datetime(), ?, 1, id FROM kombu_queue", [text]
        )
        connection.commit()


@both_sizes
def test_what_is_no_message_ends_neither_worker_nor_job(
    stores: Stores,  # noqa: F811
) -> None:
    wakeup = Wakeup(stores.settings)
    wakeup.prepare()
    running = stores.submit(outer_loops=100_000)
    wakeup.send(running)
    wakeup.close()
    with worker() as started:
        stores.wait_for(running, lambda job: job.attempt == 1)
        for text in WRONG[:4]:
            put(stores.settings, text)
        before = stores.wait_for(running, lambda job: (job.checkpoint_step or 0) >= 1).checkpoint_step or 0
        stores.wait_for(running, lambda job: (job.checkpoint_step or 0) > before)
        with stores.database.begin() as session:
            jobs.cancel(session, running)
        stores.wait_for(running, lambda job: job.ended_at is not None)
        for text in WRONG:
            put(stores.settings, text)
        # Else the worker might run the last job before it has read any of them. On Redis each costs a second.
        pause = threading.Event()
        for _ in range(3000):
            if not waiting(stores.settings):
                break
            pause.wait(0.1)
        assert waiting(stores.settings) == 0
        last = stores.submit(outer_loops=2)
        wakeup = Wakeup(stores.settings)
        wakeup.send(last)
        wakeup.close()
        ended = stores.wait_for(last, lambda job: job.ended_at is not None)
        assert ended.state is JobState.SUCCEEDED
        assert started.poll() is None
    assert stores.job(running).attempt == 1


def test_an_api_notices_a_worker_that_vanished_and_ends_in_order(stores: Stores) -> None:  # noqa: F811
    port = free_port()
    command = [sys.executable, "-m", "server", "--port", str(port)]

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
        except httpx.TransportError:
            return False

    vanished = stores.submit()
    with stores.database.begin() as session:
        jobs.claim(session, vanished, "vanished", 0.001)
    with process(command, ready) as api:
        # There is no worker that could notice that the job's has vanished.
        stores.wait_for(vanished, lambda job: job.state is JobState.QUEUED)
        api.terminate()
        assert api.wait(60) == -signal.SIGTERM  # uvicorn sends it to itself again after its orderly end
