"""Wake workers when a job waits. The queue is in SQL, so a lost message costs only time."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Event, Semaphore
from uuid import uuid4

import structlog
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Producer
from sqlalchemy import make_url

from server.settings import Settings
from server.store.db import use_wal

TASK = "worker.tasks.run_job"
QUEUE = "celery"
"""The default queue of Celery's workers."""
MOST_WAITING = 10
"""Maximum number of unsent wake-ups. Each wakes a worker, which runs jobs until none waits; more add nothing."""
PAUSE_SECONDS = 0.1
"""Pause between two wake-ups, so that bursts of submissions share them."""
CONNECT_SECONDS = 2
"""Connection timeout: a broker that is down must not block the sender for longer."""
VISIBILITY_SECONDS = 3600
"""Applies only to messages that were fetched and not started: workers acknowledge at the start."""


class Wakeup:
    """Sends job ids to the broker from a thread of its own, so that no request waits for the broker.

    It writes Celery's messages with kombu, as Celery itself does: all of Celery would cost the API another 5 MB.
    """

    def __init__(self, settings: Settings) -> None:
        """Send to the settings' broker. Connects on first use."""
        self._url = settings.broker_url
        self._options = transport_options(settings)
        self._queue = Queue(QUEUE, exchange=QUEUE, routing_key=QUEUE)
        self._producer: Producer | None = None
        self._room = Semaphore(MOST_WAITING)
        self._closing = Event()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="wakeup")

    def prepare(self) -> None:
        """Create the file of an SQLite broker, or delete the delivered messages from it."""
        path = (
            make_url(self._url.removeprefix("sqla+")).database
            if self._url.startswith("sqla+sqlite")
            else None
        )
        if path is None:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            use_wal(connection)
            with suppress(sqlite3.OperationalError):  # no table before the first message
                connection.execute("DELETE FROM kombu_message WHERE visible = 0")
            connection.commit()

    def send(self, job_id: str) -> None:
        """Queue a wake-up for the job. Never raises, never blocks.

        If many wake-ups are queued already, this one is dropped: they are sent after this job was committed, so their
        workers find it. Failures are logged; the reaper repeats lost wake-ups.
        """
        if self._room.acquire(blocking=False):
            with suppress(RuntimeError):  # after `close`
                self._sender.submit(self._send, job_id)

    def close(self) -> None:
        """Send what is queued, and close the connection."""
        self._closing.set()
        self._sender.shutdown()
        self._disconnect()

    def _send(self, job_id: str) -> None:
        self._room.release()
        try:
            if self._producer is None:
                connection = Connection(
                    self._url, connect_timeout=CONNECT_SECONDS, transport_options=self._options
                )
                self._producer = Producer(connection, serializer="json")
            self._producer.publish(
                **_message(job_id),
                exchange=self._queue.exchange,
                routing_key=self._queue.routing_key,
                declare=[self._queue],
            )
        except Exception as error:  # every broker has exceptions of its own
            structlog.get_logger().warning("wake-up not sent", job_id=job_id, error=repr(error))
            self._disconnect()
        self._closing.wait(PAUSE_SECONDS)

    def _disconnect(self) -> None:
        """Drop the connection. The next wake-up opens a new one."""
        if self._producer is not None:
            with suppress(Exception):  # the connection may be broken already
                self._producer.connection.release()
        self._producer = None


def _message(job_id: str) -> dict[str, object]:
    """A call of the worker's task: the required fields of Celery's message protocol, version 2."""
    task_id = str(uuid4())
    return {
        "body": ([job_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
        "headers": {"lang": "py", "task": TASK, "id": task_id, "root_id": task_id, "ignore_result": True},
        "correlation_id": task_id,
    }


def transport_options(settings: Settings) -> dict[str, object]:
    """Options of the broker's client, besides its URL."""
    if not settings.broker_url.startswith("redis"):
        return {}
    return {
        "global_keyprefix": settings.broker_prefix,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": 10,
        "socket_keepalive": True,
        "health_check_interval": 30,
        # Redelivers a message whose worker died before it acknowledged it.
        "visibility_timeout": VISIBILITY_SECONDS,
    }
