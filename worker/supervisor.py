"""The supervisor: claims jobs, runs each attempt in a child process, renews its lease, and stops it when necessary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from server.jobs.wakeup import Wakeup
from server.settings import Settings
from server.store import jobs
from server.store.db import Database
from server.store.errors import STORE_ERRORS
from server.store.objects import ObjectStore
from server.store.states import ENDED, HELD, JobState
from server.store.sweep import delete_leftovers
from server.store.tables import Job, utcnow
from worker.exits import DONE, IO_ERROR, STOPPED, UNAVAILABLE
from worker.scratch import scratch_folder

POLL_SECONDS = 0.5
"""Between two looks at the child and its job."""


@dataclass(frozen=True)
class Stop:
    """Why a child is stopped before it has finished."""

    reason: str
    counted: bool = False
    """Whether it counts against the job's attempts. A requested stop does not."""
    grace: bool = True
    """Whether the child gets time to write a checkpoint before it is killed."""
    error_code: str | None = None
    """The job fails with this code; None: it is queued for another attempt."""


class Supervisor:
    """One per worker process; runs one job at a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        objects: ObjectStore,
        wakeup: Wakeup,
        owner: str,
        stop: threading.Event,
    ) -> None:
        """`owner` names this worker in leases; `stop` is set when the worker is to end."""
        self._settings = settings
        self._database = database
        self._objects = objects
        self._wakeup = wakeup
        self._owner = owner
        self._stop = stop

    def drain(self) -> None:
        """Run queued jobs, in the order of `jobs.claim`, until there are none or the worker must end."""
        while not self._stop.is_set():
            try:
                with self._database.begin() as session:
                    job = jobs.claim(session, None, self._owner, self._settings.lease_seconds)
            except SQLAlchemyError as error:
                structlog.get_logger().warning("the database does not answer", error=repr(error))
                self._pause()
                continue
            if job is None:
                return
            if self.run(job) in (UNAVAILABLE, IO_ERROR):
                self._pause()

    def run(self, job: Job) -> int:
        """Run one attempt of a claimed job and record the job's new state.

        Returns the exit status of the child process; see `worker.exits`.
        """
        log = structlog.get_logger().bind(job_id=job.id, attempt=job.attempt)
        log.info("attempt started", dataset=job.dataset, set=job.name)
        lease = _Lease(self._settings, self._database, job)
        code, stop = IO_ERROR, None
        try:
            # The child keeps all temporary files in this folder, so that none stay if it is killed.
            with scratch_folder() as folder:
                child = _start(job, folder)
                try:
                    stop = self._watch(child, lease)
                finally:
                    _end(child)
                code = child.returncode
        except OSError as error:  # no space for the folder, or no memory for the process
            log.warning("the attempt could not be started", error=repr(error))
        try:
            self._settle(job, code, stop, log)
        except (*STORE_ERRORS, OSError) as error:
            # The lease will expire, and then the reaper settles it.
            log.warning("the job's state could not be settled", error=repr(error))
        return code

    def _pause(self) -> None:
        """Give a store that does not answer time to recover."""
        self._stop.wait(self._settings.lease_renew_seconds)

    def _watch(self, child: subprocess.Popen[bytes], lease: _Lease) -> Stop | None:
        """Renew the lease until the child ends. Returns why the child was stopped, None if it ended by itself.

        A stopped child gets SIGTERM, and a grace period to write its checkpoint. A child whose job has ended in the
        database gets the same period to exit: it may hang in its last steps, such as a GPU driver's, and would block
        this worker for ever. After the deadline the caller kills it. This polls, because one thread watches the
        process, the lease and the job's state together, and `child.wait` would see only the first.
        """
        stop: Stop | None = None
        deadline = float("inf")
        while child.poll() is None and time.monotonic() < deadline:
            state = lease.keep()
            if stop is None:
                stop = self._why_stop(state, lease)
                if stop is not None:
                    child.terminate()
            if deadline == float("inf") and (stop is not None or state in ENDED):
                # After its job has ended, the child gets the same time to exit.
                grace = self._settings.kill_grace_seconds if stop is None or stop.grace else 0
                deadline = time.monotonic() + grace
            time.sleep(POLL_SECONDS)
        return stop

    def _why_stop(self, state: JobState | None, lease: _Lease) -> Stop | None:
        if self._stop.is_set():
            return Stop("the worker was shut down")
        if lease.is_lost:
            return Stop("the lease was lost")
        if state is JobState.CANCELING:
            return Stop("canceled")
        return self._why_too_long(lease) if state is JobState.RUNNING else None

    def _why_too_long(self, lease: _Lease) -> Stop | None:
        if lease.seconds_left <= 0:
            return Stop(
                "all attempts together have reached max_runtime_s: raise it, or lower outer_loops",
                grace=False,
                error_code="max-runtime",
            )
        if lease.idle_seconds > self._settings.stuck_seconds:
            return Stop(f"no progress for {self._settings.stuck_seconds:g} s", counted=True, grace=False)
        return None

    def _settle(self, job: Job, code: int, stop: Stop | None, log: FilteringBoundLogger) -> None:
        """Record the job's state after its child has ended, unless the child did, or the lease was lost."""
        with self._database.begin() as session:
            if code != DONE and stop is not None and stop.error_code is not None:
                jobs.fail(session, job.id, job.attempt, stop.error_code, stop.reason)
            elif code != DONE:
                counted = code not in (STOPPED, UNAVAILABLE) if stop is None else stop.counted
                why = _describe_exit(code) if stop is None else stop.reason
                state = jobs.requeue(
                    session, job.id, job.attempt, why, self._settings.max_attempts, counted=counted
                )
                if state is not None:  # None: the child had recorded it already
                    log.warning("attempt interrupted", reason=why, state=state.value)
            settled = jobs.state_of(session, job.id, job.attempt)
        if settled in ENDED:
            delete_leftovers(self._objects, job.id)
            log.info("job ended", state=settled.value)
        elif settled is JobState.QUEUED and self._stop.is_set():
            self._wakeup.send(job.id)  # another worker may be idle


class _Lease:
    """The lease of one attempt. It survives a database outage shorter than the lease."""

    def __init__(self, settings: Settings, database: Database, job: Job) -> None:
        self._settings = settings
        self._database = database
        self._job = job
        self._renewed = time.monotonic()
        self.is_lost = False
        """Another attempt has started, or may start at any time."""
        self.idle_seconds = 0.0
        """Seconds since the child last reported progress."""
        self.seconds_left = float("inf")
        """Seconds that the job may still run."""

    def keep(self) -> JobState | None:
        """Renew the lease when it is due. Returns the job's state, None if it is unknown.

        It reads before it writes: a child that hangs in a transaction blocks every writer of an SQLite file, but not
        readers. So the supervisor still learns that the child has hung.
        """
        now, state = time.monotonic(), None
        try:
            with self._database.read() as session:
                state = self._observe(jobs.get(session, self._job.id))
            if now - self._renewed >= self._settings.lease_renew_seconds:
                with self._database.begin() as session:
                    jobs.renew(session, self._job.id, self._job.attempt, self._settings.lease_seconds)
                self._renewed = now
        except SQLAlchemyError as error:
            structlog.get_logger().warning("the database does not answer", error=repr(error))
            self.is_lost = self.is_lost or now - self._renewed > self._settings.lease_seconds
        return state

    def _observe(self, job: Job | None) -> JobState | None:
        """Update this lease from the job's row. Returns the job's state, None if the job is no longer ours."""
        self.is_lost = job is None or job.attempt != self._job.attempt or job.state is JobState.QUEUED
        if job is None or self.is_lost:
            return None
        if job.progressed_at is not None:
            self.idle_seconds = (utcnow() - job.progressed_at).total_seconds()
        if job.max_runtime_s is not None and job.state in HELD:
            self.seconds_left = job.max_runtime_s - jobs.running_seconds(job, utcnow())
        return job.state


def _start(job: Job, folder: str) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own, so that `_end` can kill whatever it has started, too.

    Its standard input is our pipe: if this process dies, the child reads end-of-file and ends.
    """
    command = [sys.executable, "-m", "worker.runner", job.id, str(job.attempt)]
    environment = {**computing_environment(), "TMPDIR": folder}
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)


def computing_environment() -> dict[str, str]:
    """The environment of a child process that computes."""
    # OpenMP threads spin while they wait, which slows a busy machine down: measured 10 times.
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's session, and reap the child."""
    if child.stdin is not None:
        child.stdin.close()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _describe_exit(code: int) -> str:
    if code == UNAVAILABLE:
        return "the database or the object store did not answer: see the worker's log"
    if code == IO_ERROR:
        return (
            "a file could not be read or written, for example because the disk is full: see the worker's log"
        )
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with status {code}: see the worker's log"
