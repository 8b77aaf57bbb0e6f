"""The reaper: finds jobs whose worker has vanished, and queued jobs whose wake-up was lost."""

from __future__ import annotations

import threading

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.settings import Settings
from server.store import jobs
from server.store.db import Database
from server.store.states import JobState
from server.store.tables import utcnow
from server.wakeup import Wakeup


class Reaper:
    """A thread that looks once per lease renewal; any number of them on one database do no harm."""

    def __init__(self, settings: Settings, database: Database, wakeup: Wakeup, stop: threading.Event) -> None:
        """It ends when `stop` is set."""
        self._settings = settings
        self._database = database
        self._wakeup = wakeup
        self._stop = stop
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
        with self._database.begin() as session:
            for job in jobs.expired(session, utcnow()):
                state = jobs.requeue(
                    session, job.id, job.attempt, "its worker vanished", self._settings.max_attempts
                )
                structlog.get_logger().warning(
                    "lease expired", job_id=job.id, attempt=job.attempt, state=state and state.value
                )
        with self._database.read() as session:
            waiting = jobs.page(session, owner_id=None, state=JobState.QUEUED, after=None, limit=1)
        for job in waiting:
            self._wakeup.send(job.id)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except SQLAlchemyError as error:  # a database that restarts is back at the next look
                structlog.get_logger().warning("the reaper could not look", error=repr(error))
            if self._stop.wait(self._settings.lease_renew_seconds):
                return
