"""The reaper: finds jobs whose worker has vanished, queued jobs whose wake-up was lost, and what nobody needs.

Every API and worker process has one; which of them does a chore is decided in the database.
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
"""Least time between two wake-ups for what still waits: every worker may be busy for hours."""
WAKE_MOST = 10
"""Wake-ups at a time; a worker that was woken goes on until no job waits."""
SWEEP_SECONDS = 6 * 3600
"""Least time between two sweeps."""
UPLOAD_SECONDS = 24 * 3600
"""An upload's temporary file that was not written to for so long is left from a process that was killed."""
JOIN_SECONDS = 10
"""How long the end of the process waits for a look that is under way."""


class Reaper:
    """A thread that looks once per lease renewal."""

    def __init__(self, settings: Settings, database: Database, objects: ObjectStore, wakeup: Wakeup) -> None:
        """It works from `start` to `stop`."""
        self._settings = settings
        self._database = database
        self._objects = objects
        self._wakeup = wakeup
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin; the first look is at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, if it was ever started; a sweep ends before its next object."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def look(self) -> None:
        """Do what is due: settle expired leases, wake a worker for a job that waits, sweep."""
        if self._take("reap", self._settings.lease_renew_seconds):
            for job_id in self._collect_expired():
                self._wakeup.send(job_id)
        if self._take("wake", WAKE_SECONDS):
            self.wake()
        if self._take("sweep", SWEEP_SECONDS):
            self._sweep()

    def wake(self) -> None:
        """Wake as many workers as jobs wait, within reason."""
        with self._database.read() as session:
            waiting = jobs.page(session, owner_id=None, state=JobState.QUEUED, after=None, limit=WAKE_MOST)
        for job in waiting:
            self._wakeup.send(job.id)

    def _take(self, chore: str, every: float) -> bool:
        with self._database.begin() as session:
            return periodic.take(session, chore, every)

    def _collect_expired(self) -> list[str]:
        """Settle the jobs of vanished workers; those that wait again."""
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
        """Delete uploads that nobody has used for as long as the operator keeps them."""
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
        self._try(self.wake)  # this process may be the worker that the jobs wait for
        self._try(self.look)
        while not self._stop.wait(self._settings.lease_renew_seconds):
            self._try(self.look)

    def _try(self, act: Callable[[], None]) -> None:
        """A store that restarts is back at the next look."""
        try:
            act()
        except (*STORE_ERRORS, OSError) as error:
            structlog.get_logger().warning("the reaper could not look", error=repr(error))
