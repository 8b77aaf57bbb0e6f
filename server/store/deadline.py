"""PostgreSQL connections that do not wait for ever: a server that hangs answers no statement, and ends none."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

ANSWER_SECONDS = 12.0
"""No statement of the service takes longer; a little more than a transaction may wait for another's lock."""
CONNECT_SECONDS = 5
ROW = TypeVar("ROW")


class HangingError(psycopg.OperationalError):
    """The server has not answered in time; the connection is closed."""

    is_hanging = True


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection whose every wait for the server ends after `ANSWER_SECONDS`."""

    def wait(self, gen: PQGen[ROW], interval: float = 0.1, timeout: float | None = None) -> ROW:
        """Psycopg's own, with a deadline. Raises `HangingError`."""
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            self.pgconn.finish()  # what was begun may be answered at any time: nothing else can be asked
            raise HangingError(f"the database has not answered for {ANSWER_SECONDS:g} s") from error


def connect(*arguments: Any, **options: Any) -> DeadlineConnection:
    """As `psycopg.connect`, but raises `HangingError`; the kernel gives up a connection whose other end is gone."""
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
