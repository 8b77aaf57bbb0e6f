"""Telling the workers that a job waits. Only a hint: SQL is the queue, a lost message costs only time."""

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
"""The queue that Celery's workers listen to unless told otherwise."""
MOST_WAITING = 10
"""Hints that wait to be sent. Each wakes a worker, which goes on until no job waits; more would tell it nothing new."""
PAUSE_SECONDS = 0.1
"""Between two hints: so submissions that come faster than workers could take them up share their hints."""
CONNECT_SECONDS = 2
"""A broker that is down must not hold up what waits for longer."""
VISIBILITY_SECONDS = 3600
"""Only for messages that are fetched and not begun: workers acknowledge a message when they begin with it."""


class Wakeup:
    """Sends job ids to the broker, one after the other in a thread of its own: nobody waits for the broker.

    Writes Celery's messages by the library that Celery itself sends them with: all of Celery would take the API
    another 5 MB.
    """

    def __init__(self, settings: Settings) -> None:
        """To the broker that the settings name; connects when first used."""
        self._url = settings.broker_url
        self._options = transport_options(settings)
        self._queue = Queue(QUEUE, exchange=QUEUE, routing_key=QUEUE)
        self._producer: Producer | None = None
        self._room = Semaphore(MOST_WAITING)
        self._closing = Event()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="wakeup")

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
            use_wal(connection)
            with suppress(sqlite3.OperationalError):  # no table before the first message
                connection.execute("DELETE FROM kombu_message WHERE visible = 0")
            connection.commit()

    def send(self, job_id: str) -> None:
        """Wake a worker for the job, soon. Never raises, never waits.

        Where many hints wait already this one is left out: a worker that is woken by one of them, which is sent after
        this job was committed, finds it as well. A failure is logged, and the job is found without the hint.
        """
        if self._room.acquire(blocking=False):
            with suppress(RuntimeError):  # after `close`
                self._sender.submit(self._send, job_id)

    def close(self) -> None:
        """Send what waits, and close the connection."""
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
        except Exception as error:  # every broker fails by exceptions of its own
            structlog.get_logger().warning("wake-up not sent", job_id=job_id, error=repr(error))
            self._disconnect()
        self._closing.wait(PAUSE_SECONDS)

    def _disconnect(self) -> None:
        """The next hint is sent by a new connection."""
        if self._producer is not None:
            with suppress(Exception):  # of a connection that is broken already
                self._producer.connection.release()
        self._producer = None


def _message(job_id: str) -> dict[str, object]:
    """A call of the worker's task: version 2 of Celery's message protocol, the fields that it demands."""
    task_id = str(uuid4())
    return {
        "body": ([job_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
        "headers": {"lang": "py", "task": TASK, "id": task_id, "root_id": task_id, "ignore_result": True},
        "correlation_id": task_id,
    }


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
