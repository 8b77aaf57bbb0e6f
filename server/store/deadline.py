"""PostgreSQL connections with a deadline on the client's side: a server that hangs enforces no timeout."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

ANSWER_SECONDS = 12.0
"""Deadline of a statement: a little more than the lock timeout (`LOCK_TIMEOUT_MS`)."""
CONNECT_SECONDS = 5
ROW = TypeVar("ROW")


class HangingError(psycopg.OperationalError):
    """The server did not answer in time. The connection is closed."""

    is_hanging = True


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection on which no wait for the server exceeds `ANSWER_SECONDS`."""

    def wait(self, gen: PQGen[ROW], interval: float = 0.1, timeout: float | None = None) -> ROW:
        """As in psycopg, with a deadline. Raises `HangingError`."""
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            self.pgconn.finish()  # a late answer could arrive at any time, so the connection is unusable
            raise HangingError(f"the database has not answered for {ANSWER_SECONDS:g} s") from error


def connect(*arguments: Any, **options: Any) -> DeadlineConnection:
    """As `psycopg.connect`, but raises `HangingError`. TCP keep-alives detect a peer that has vanished."""
    limits = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    try:
        return DeadlineConnection.connect(*arguments, **{**limits, **options})
    except psycopg.errors.ConnectionTimeout as error:
        raise HangingError(str(error)) from error
