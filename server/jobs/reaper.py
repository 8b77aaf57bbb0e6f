"""The reaper requeues jobs of dead workers, repeats lost wake-ups, and deletes unreferenced objects.

Every API and worker process has one. The database decides which process does a periodic task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import structlog

from mdc_core.errors import ConfigError
from server.jobs.wakeup import Wakeup
from server.settings import Settings
from server.store import datasets, holds, installation, jobs, periodic
from server.store.db import Database
from server.store.errors import STORE_ERRORS
from server.store.objects import ObjectStore, delete_old
from server.store.states import ENDED, JobState
from server.store.sweep import check_share, delete_leftovers, sweep
from server.store.tables import utcnow

WAKE_SECONDS = 180
"""Minimum time between two wake-ups for waiting jobs: every worker may be busy for hours."""
WAKE_MOST = 10
"""Wake-ups to send at a time. A worker runs jobs until none waits."""
SWEEP_SECONDS = 6 * 3600
"""Minimum time between two sweeps."""
UPLOAD_SECONDS = 24 * 3600
"""Age at which an upload's temporary file counts as left over by a killed process."""
JOIN_SECONDS = 10
"""How long `stop` waits for a running pass."""


class Reaper:
    """A thread that makes a pass once per lease renewal."""

    def __init__(self, settings: Settings, database: Database, objects: ObjectStore, wakeup: Wakeup) -> None:
        """The thread runs from `start` to `stop`."""
        self._settings = settings
        self._database = database
        self._objects = objects
        self._wakeup = wakeup
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Start the thread. The first pass is immediate."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, if it was started. A sweep stops before its next object."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def look(self) -> None:
        """Do what is due: requeue jobs with expired leases, wake workers, sweep."""
        if self._take("reap", self._settings.lease_renew_seconds):
            for job_id in self._collect_expired():
                self._wakeup.send(job_id)
        if self._take("wake", WAKE_SECONDS):
            self.wake()
        if self._take("sweep", SWEEP_SECONDS):
            self._sweep()

    def wake(self) -> None:
        """Send a wake-up for each waiting job, up to `WAKE_MOST`."""
        with self._database.read() as session:
            waiting = jobs.page(session, owner_id=None, state=JobState.QUEUED, after=None, limit=WAKE_MOST)
        for job in waiting:
            self._wakeup.send(job.id)

    def _take(self, task: str, every: float) -> bool:
        with self._database.begin() as session:
            return periodic.take(session, task, every)

    def _collect_expired(self) -> list[str]:
        """Requeue, fail or cancel the jobs of vanished workers. Returns the ids of those that wait again."""
        settled: dict[str, JobState | None] = {}
        with self._database.begin() as session:
            for job in jobs.expired(session, utcnow()):
                settled[job.id] = jobs.requeue(
                    session, job.id, job.attempt, "its worker vanished", self._settings.max_attempts
                )
        for job_id, state in settled.items():
            structlog.get_logger().warning("lease expired", job_id=job_id, state=state and state.value)
            if state in ENDED:
                delete_leftovers(self._objects, job_id)
        return [job_id for job_id, state in settled.items() if state is JobState.QUEUED]

    def _expire(self) -> None:
        """Delete uploads that were unused for `upload_days`."""
        days = self._settings.upload_days
        if days is None:
            return
        with self._database.begin() as session:
            for row in datasets.unused(session, utcnow() - timedelta(days=days)):
                holds.lock(session, row.object_key, shared=False)
                if datasets.delete(session, row) and not holds.is_held(session, row.object_key):
                    self._objects.delete(row.object_key)
                structlog.get_logger().info("upload expired", dataset=row.id, owner=row.owner_id)

    def _sweep(self) -> None:
        self._expire()
        log = structlog.get_logger()
        age = self._settings.sweep_age_seconds
        if not installation.agrees(self._database, self._objects):
            log.error("no sweep: database and object store do not belong together")
            return
        try:
            check_share(self._database, self._objects, age)
        except ConfigError as error:
            log.error("no sweep", reason=str(error))
            return
        for stored in sweep(self._database, self._objects, age, stop=self._stop):
            log.info("object swept", key=stored.key, bytes=stored.size)

    def _run(self) -> None:
        for path in self._settings.uploads_dir.glob("upload-*"):
            delete_old(path, utcnow() - timedelta(seconds=UPLOAD_SECONDS))
        self._try(self.wake)  # a worker of this process may be the one that jobs wait for
        self._try(self.look)
        while not self._stop.wait(self._settings.lease_renew_seconds):
            self._try(self.look)

    def _try(self, act: Callable[[], None]) -> None:
        """Log errors of a store; the next pass tries again."""
        try:
            act()
        except (*STORE_ERRORS, OSError) as error:
            structlog.get_logger().warning("the reaper could not look", error=repr(error))
