"""The reaper: finds jobs whose worker has vanished, and queued jobs whose wake-up was lost."""

from __future__ import annotations

import threading
import time

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.settings import Settings
from server.store import jobs
from server.store.db import Database
from server.store.objects import ObjectStore
from server.store.states import ENDED, JobState
from server.store.tables import utcnow
from server.wakeup import Wakeup
from worker.leftovers import delete_leftovers

WAKE_SECONDS = 180
"""Least time between two wake-ups for what still waits: every worker may be busy for hours."""


class Reaper:
    """A thread that looks once per lease renewal; any number of them on one database do no harm."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        objects: ObjectStore,
        wakeup: Wakeup,
        stop: threading.Event,
    ) -> None:
        """It ends when `stop` is set."""
        self._settings = settings
        self._database = database
        self._objects = objects
        self._wakeup = wakeup
        self._stop = stop
        self._woken = float("-inf")
        self._thread = threading.Thread(target=self._run, name="reaper")

    def start(self) -> None:
        """Begin; the first look is at once, so that a restarted worker finds what waits."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end, if it was ever started."""
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> None:
        """Requeue or fail jobs with an expired lease, then wake a worker if a job waits."""
        requeued = self._collect_expired()
        if not requeued and time.monotonic() - self._woken < WAKE_SECONDS:
            return
        with self._database.read() as session:
            waiting = jobs.page(session, owner_id=None, state=JobState.QUEUED, after=None, limit=1)
        for job in waiting:
            self._wakeup.send(job.id)
            self._woken = time.monotonic()

    def _collect_expired(self) -> bool:
        """Settle the jobs of vanished workers; whether one of them waits again."""
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
        return JobState.QUEUED in settled.values()

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except SQLAlchemyError as error:  # a database that restarts is back at the next look
                structlog.get_logger().warning("the reaper could not look", error=repr(error))
            if self._stop.wait(self._settings.lease_renew_seconds):
                return
