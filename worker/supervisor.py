"""The supervisor: claims a job, runs the attempt in a child process, keeps the lease, ends the child when it must."""

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


@dataclass(frozen=True)
class Stop:
    """Why a child is ended before its time."""

    reason: str
    counted: bool = False
    """Whether it counts against the job's attempts: being asked to stop is not its fault."""
    grace: bool = True
    """Whether the child gets time to write a checkpoint."""
    error_code: str | None = None
    """With which the job fails; None: it waits for another attempt."""


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
        """Run queued jobs, the oldest first, until there are none or the worker is to end."""
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
        """Run one attempt of a claimed job to its end, whatever that is, and settle the job's state.

        Returns the status of its process.
        """
        log = structlog.get_logger().bind(job_id=job.id, attempt=job.attempt)
        log.info("attempt started", dataset=job.dataset, set=job.name)
        lease = _Lease(self._settings, self._database, job)
        code, stop = IO_ERROR, None
        try:
            # Even a child that is killed leaves no temporary files: they are all in a folder of its own.
            with scratch_folder() as folder:
                child = _start(job, folder)
                try:
                    stop = self._watch(child, lease)
                finally:
                    _end(child)
                code = child.returncode
        except OSError as error:  # no room for the folder, no memory for the process
            log.warning("the attempt could not be started", error=repr(error))
        try:
            self._settle(job, code, stop, log)
        except (*STORE_ERRORS, OSError) as error:
            # The lease runs out, and the reaper settles it.
            log.warning("the job's state could not be settled", error=repr(error))
        return code

    def _pause(self) -> None:
        """Give a store that does not answer some time."""
        self._stop.wait(self._settings.lease_renew_seconds)

    def _watch(self, child: subprocess.Popen[bytes], lease: _Lease) -> Stop | None:
        """Wait for the child and keep the lease; returns why it was stopped, None if it was not."""
        stop: Stop | None = None
        deadline = float("inf")
        while child.poll() is None and time.monotonic() < deadline:
            state = lease.keep()
            if stop is None:
                stop = self._why_stop(state, lease)
                if stop is not None:
                    child.terminate()
            if deadline == float("inf") and (stop is not None or state in ENDED):
                # A child that has ended its job by itself gets the same time to end.
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
                "the job has run for as long as its max_runtime_s allows, all attempts together: allow it more, "
                "or lower outer_loops",
                grace=False,
                error_code="max-runtime",
            )
        if lease.idle_seconds > self._settings.stuck_seconds:
            return Stop(f"no progress for {self._settings.stuck_seconds:g} s", counted=True, grace=False)
        return None

    def _settle(self, job: Job, code: int, stop: Stop | None, log: FilteringBoundLogger) -> None:
        """The job's state after its child has ended; nothing when the child settled it, or the lease is gone."""
        with self._database.begin() as session:
            if code != DONE and stop is not None and stop.error_code is not None:
                jobs.fail(session, job.id, job.attempt, stop.error_code, stop.reason)
            elif code != DONE:
                counted = code not in (STOPPED, UNAVAILABLE) if stop is None else stop.counted
                why = _described(code) if stop is None else stop.reason
                state = jobs.requeue(
                    session, job.id, job.attempt, why, self._settings.max_attempts, counted=counted
                )
                if state is not None:  # else the child had settled it before
                    log.warning("attempt interrupted", reason=why, state=state.value)
            settled = jobs.state_of(session, job.id, job.attempt)
        if settled in ENDED:
            delete_leftovers(self._objects, job.id)
            log.info("job ended", state=settled.value)
        elif settled is JobState.QUEUED and self._stop.is_set():
            self._wakeup.send(job.id)  # another worker may have nothing to do


class _Lease:
    """The lease of one attempt, renewed in time; survives a database that is away for less than the lease."""

    def __init__(self, settings: Settings, database: Database, job: Job) -> None:
        self._settings = settings
        self._database = database
        self._job = job
        self._renewed = time.monotonic()
        self.is_lost = False
        """Another attempt has begun, or may begin at any time."""
        self.idle_seconds = 0.0
        """Time since the child last reported progress."""
        self.seconds_left = float("inf")
        """What is left of the time that the job may run."""

    def keep(self) -> JobState | None:
        """Renew the lease when it is time; the job's state as far as it can be read.

        Reads first: a child that hangs in the middle of a write keeps everybody from writing to an SQLite file, not
        from reading how long it has hung.
        """
        now, state = time.monotonic(), None
        try:
            with self._database.read() as session:
                state = self._seen(jobs.get(session, self._job.id))
            if now - self._renewed >= self._settings.lease_renew_seconds:
                with self._database.begin() as session:
                    jobs.renew(session, self._job.id, self._job.attempt, self._settings.lease_seconds)
                self._renewed = now
        except SQLAlchemyError as error:
            structlog.get_logger().warning("the database does not answer", error=repr(error))
            self.is_lost = self.is_lost or now - self._renewed > self._settings.lease_seconds
        return state

    def _seen(self, job: Job | None) -> JobState | None:
        """Take notice of the job as it is now; its state, None when it is not ours any more."""
        self.is_lost = job is None or job.attempt != self._job.attempt or job.state is JobState.QUEUED
        if job is None or self.is_lost:
            return None
        if job.progressed_at is not None:
            self.idle_seconds = (utcnow() - job.progressed_at).total_seconds()
        if job.max_runtime_s is not None and job.state in HELD:
            self.seconds_left = job.max_runtime_s - jobs.running_seconds(job, utcnow())
        return job.state


def _start(job: Job, folder: str) -> subprocess.Popen[bytes]:
    """The child leads a session of its own, so that all it starts can be ended with it.

    It holds the other end of our pipe: when this process dies, the child reads end-of-file and ends.
    """
    command = [sys.executable, "-m", "worker.runner", job.id, str(job.attempt)]
    environment = {**computing_environment(), "TMPDIR": folder}
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)


def computing_environment() -> dict[str, str]:
    """The environment of a child that computes."""
    # Threads that wait by spinning bring a busy machine to a crawl: measured 10 times slower.
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the child's session, and reap it."""
    if child.stdin is not None:
        child.stdin.close()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _described(code: int) -> str:
    if code == UNAVAILABLE:
        return "the database or the object store did not answer; the worker's log has the reason"
    if code == IO_ERROR:
        return "a file could not be read or written; the worker's log has the reason, such as a full disk"
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with status {code}; its output is in the worker's log"
