"""Real database servers for tests.

PostgreSQL is at MDC_TEST_DATABASE_URL, or where a local installation listens. Each run makes a database of its own
and drops it. Where no server answers the test is skipped, or fails when MDC_REQUIRE_SERVICES is 1.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from server.store.db import open_engine
from server.store.tables import Base


def missing(service: str, reason: object) -> None:
    """Skip the test, or fail it where every service is required."""
    message = f"{service} is not reachable: {reason}"
    if os.environ.get("MDC_REQUIRE_SERVICES") == "1":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def postgres_database() -> Iterator[str]:
    """URL of an empty PostgreSQL database that is dropped at the end."""
    server = _server()
    name = f"mdc_test_{secrets.token_hex(6)}"
    _execute(server, f'CREATE DATABASE "{name}"')
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


def clear(url: str) -> None:
    """Delete every row of a database that has been migrated."""
    engine = open_engine(url)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()


def _server() -> URL:
    """The first candidate that answers."""
    given = os.environ.get("MDC_TEST_DATABASE_URL")
    user = getpass.getuser()
    candidates = (
        [given]
        if given
        else [
            f"postgresql+psycopg://{user}@{host}/{database}{query}"
            for host, query in (("", "?host=/var/run/postgresql"), ("127.0.0.1:5432", ""))
            for database in ("postgres", user)
        ]
    )
    failure: object = None
    for candidate in candidates:
        try:
            _execute(make_url(candidate), "SELECT 1")
        except OperationalError as error:
            failure = str(error.orig).strip()
        else:
            return make_url(candidate)
    missing("PostgreSQL", failure)
    raise AssertionError("missing() ends the test")


def _execute(server: URL, statement: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
