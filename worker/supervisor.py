"""The supervisor: claims a job, runs the attempt in a child process, keeps the lease, ends the child when it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import structlog
from structlog.typing import FilteringBoundLogger

from server.settings import Settings
from server.store import jobs
from server.store.db import Database
from server.store.states import ENDED, JobState
from server.store.tables import Job
from worker.exits import DONE, STOPPED

POLL_SECONDS = 0.5


class Supervisor:
    """One per worker process; runs one job at a time."""

    def __init__(self, settings: Settings, database: Database, owner: str, stop: threading.Event) -> None:
        """`owner` names this worker in leases; `stop` is set when the worker is to end."""
        self._settings = settings
        self._database = database
        self._owner = owner
        self._stop = stop

    def drain(self) -> None:
        """Run queued jobs, the oldest first, until there are none or the worker is to end."""
        while not self._stop.is_set():
            with self._database.begin() as session:
                job = jobs.claim(session, None, self._owner, self._settings.lease_seconds)
            if job is None:
                return
            self.run(job)

    def run(self, job: Job) -> None:
        """Run one attempt of a claimed job to its end, whatever that is, and settle the job's state."""
        log = structlog.get_logger().bind(job_id=job.id, attempt=job.attempt)
        log.info("attempt started", dataset=job.dataset, set=job.name)
        child = self._start(job)
        try:
            reason = self._watch(child, job)
        finally:
            _end(child)
        self._settle(job, child.returncode, reason, log)

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        """The child leads a session of its own, so that all it starts can be ended with it.

        It holds the other end of our pipe: when this process dies, the child reads end-of-file and ends.
        """
        command = [sys.executable, "-m", "worker.runner", job.id, str(job.attempt)]
        # Threads that wait by spinning bring a busy machine to a crawl: measured 10 times slower.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)

    def _watch(self, child: subprocess.Popen[bytes], job: Job) -> str | None:
        """Wait for the child, renewing the lease; returns why the child was asked to stop, None if it was not."""
        renewed = time.monotonic()
        while child.poll() is None:
            if self._stop.is_set():
                return self._stop_child(child, "the worker was shut down")
            state = self._state(job)
            if state is JobState.CANCELING:
                return self._stop_child(child, "canceled")
            if state is None:
                return self._stop_child(child, "the lease was lost")
            if state in ENDED:  # by the child itself, which is about to end
                self._wait(child)
                return None
            if time.monotonic() - renewed >= self._settings.lease_renew_seconds:
                with self._database.begin() as session:
                    jobs.renew(session, job.id, job.attempt, self._settings.lease_seconds)
                renewed = time.monotonic()
            time.sleep(POLL_SECONDS)
        return None

    def _state(self, job: Job) -> JobState | None:
        """The job's state, None when another attempt has begun or may begin at any time."""
        with self._database.read() as session:
            state = jobs.state_of(session, job.id, job.attempt)
        return None if state is JobState.QUEUED else state

    def _stop_child(self, child: subprocess.Popen[bytes], reason: str) -> str:
        """Let the child write its checkpoint."""
        child.terminate()
        self._wait(child)
        return reason

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        """Give the child its time; if it is not done then, `_end` kills it."""
        try:
            child.wait(self._settings.kill_grace_seconds)
        except subprocess.TimeoutExpired:
            structlog.get_logger().warning("child killed", pid=child.pid, reason="it did not stop in time")

    def _settle(self, job: Job, code: int, reason: str | None, log: FilteringBoundLogger) -> None:
        """The job's state after its child has ended; nothing when the child settled it, or the lease is gone."""
        if code == DONE:  # with a signal, the child had settled the state before
            log.info("attempt ended")
            return
        why = reason or _described(code)
        # Only what went wrong by itself counts against the job: a shut-down is not its fault.
        limit = job.attempt + 1 if code == STOPPED else self._settings.max_attempts
        with self._database.begin() as session:
            state = jobs.requeue(session, job.id, job.attempt, why, limit)
        log.warning("attempt interrupted", reason=why, state=state and state.value)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the child's session, and reap it."""
    if child.stdin is not None:
        child.stdin.close()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _described(code: int) -> str:
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with status {code}; its output is in the worker's log"
