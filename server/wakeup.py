"""Telling the workers that a job waits. Only a hint: SQL is the queue, a lost message costs only time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import structlog
from celery import Celery
from sqlalchemy import make_url

TASK = "worker.tasks.run_job"
CONNECT_SECONDS = 2
"""A broker that is down must not hold up a submission for longer."""


class Wakeup:
    """Sends job ids to the broker; connects when first used."""

    def __init__(self, broker_url: str) -> None:
        """`broker_url` is Celery's."""
        self._url = broker_url
        self._celery = Celery("mdc", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            task_ignore_result=True,
            task_serializer="json",
            broker_connection_timeout=CONNECT_SECONDS,
            broker_transport_options=transport_options(broker_url),
        )

    def prepare(self) -> None:
        """Make the file of an SQLite broker in the mode in which readers and a writer do not block each other."""
        path = (
            make_url(self._url.removeprefix("sqla+")).database
            if self._url.startswith("sqla+sqlite")
            else None
        )
        if path is None:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # the file remembers it

    def send(self, job_id: str) -> None:
        """Wake a worker for the job. Never raises: a failure is logged, the job is found without the hint."""
        try:
            self._celery.send_task(TASK, args=[job_id], ignore_result=True, retry=False)
        except Exception as error:  # every broker fails by exceptions of its own
            structlog.get_logger().warning("wake-up not sent", job_id=job_id, error=repr(error))

    def close(self) -> None:
        """Close the connections."""
        self._celery.close()


def transport_options(broker_url: str) -> dict[str, object]:
    """What the broker's client needs besides its URL."""
    if broker_url.startswith(("redis", "rediss")):
        return {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": 10, "socket_keepalive": True}
    return {}
