"""Telling the workers that a job waits. Only a hint: SQL is the queue, a lost message costs only time."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import structlog
from celery import Celery
from sqlalchemy import make_url

from server.settings import Settings

TASK = "worker.tasks.run_job"
CONNECT_SECONDS = 2
"""A broker that is down must not hold up a submission for longer."""
VISIBILITY_SECONDS = 3600
"""Only for messages that are fetched and not begun: workers acknowledge a message when they begin with it."""


class Wakeup:
    """Sends job ids to the broker; connects when first used."""

    def __init__(self, settings: Settings) -> None:
        """To the broker that the settings name."""
        self._url = settings.broker_url
        self._celery = Celery("mdc", broker=settings.broker_url, set_as_current=False)
        self._celery.conf.update(
            task_ignore_result=True,
            task_serializer="json",
            broker_connection_timeout=CONNECT_SECONDS,
            broker_transport_options=transport_options(settings),
        )

    def prepare(self) -> None:
        """Make the file of an SQLite broker, or shrink it: messages that were delivered stay in it."""
        path = (
            make_url(self._url.removeprefix("sqla+")).database
            if self._url.startswith("sqla+sqlite")
            else None
        )
        if path is None:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            # In this mode, which the file remembers, readers and a writer do not block each other.
            connection.execute("PRAGMA journal_mode=WAL")
            with suppress(sqlite3.OperationalError):  # no table before the first message
                connection.execute("DELETE FROM kombu_message WHERE visible = 0")
            connection.commit()

    def send(self, job_id: str) -> None:
        """Wake a worker for the job. Never raises: a failure is logged, the job is found without the hint."""
        try:
            self._celery.send_task(TASK, args=[job_id], ignore_result=True, retry=False)
        except Exception as error:  # every broker fails by exceptions of its own
            structlog.get_logger().warning("wake-up not sent", job_id=job_id, error=repr(error))

    def close(self) -> None:
        """Close the connections."""
        self._celery.close()


def transport_options(settings: Settings) -> dict[str, object]:
    """What the broker's client needs besides its URL."""
    if not settings.broker_url.startswith("redis"):
        return {}
    return {
        "global_keyprefix": settings.broker_prefix,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": 10,
        "socket_keepalive": True,
        "health_check_interval": 30,
        # A message that a worker fetched and lost with its life is handed out again after this time.
        "visibility_timeout": VISIBILITY_SECONDS,
    }
