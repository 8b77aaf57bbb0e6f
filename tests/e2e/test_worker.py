"""`python -m worker` as it runs in production, on both sizes: wake-ups of every kind, and a regular stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from server.store import jobs
from server.store.states import JobState
from server.wakeup import Wakeup
from tests.conftest import both_sizes
from tests.services import free_port, process
from tests.worker.conftest import Stores, stores  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")]


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
