"""Real servers for tests.

PostgreSQL is at MDC_TEST_DATABASE_URL, or where a local installation listens. Each run makes a database of its own
and drops it. Redis is at MDC_TEST_REDIS_URL, or where a local installation listens, or is started for the run. Where
no server answers the test is skipped, or fails when MDC_REQUIRE_SERVICES is 1.

S3 is at MDC_TEST_S3_URL, with the credentials of AWS_…; without it moto's server, which comes with the extra `dev`,
takes its place. Each run makes a bucket of its own.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError
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


@contextmanager
def redis_url() -> Iterator[str]:
    """URL of a Redis server; who uses it keeps to a prefix of his own."""
    given = os.environ.get("MDC_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
    if _answers(given):
        yield given
        return
    program = shutil.which("redis-server")
    if "MDC_TEST_REDIS_URL" in os.environ or program is None:
        missing("Redis", f"nothing answers at {given.rsplit('@')[-1]}")
        raise AssertionError("missing() ends the test")
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with process([program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], lambda: _answers(url)):
        yield url


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@dataclass(frozen=True)
class S3:
    """A bucket, or a folder in it."""

    url: str
    environment: dict[str, str]
    """`AWS_…`, for this process and those that it starts."""


def s3_kind() -> str:
    """What stands behind `s3_bucket`."""
    given = os.environ.get("MDC_TEST_S3_URL")
    return f"the server at {given}" if given else "moto (MDC_TEST_S3_URL is not set)"


@contextmanager
def s3_bucket() -> Iterator[S3]:
    """A new bucket."""
    given = os.environ.get("MDC_TEST_S3_URL")
    if given:
        yield _new_bucket(
            given, {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        )
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    credentials = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, lambda: socket_answers(port)):
        yield _new_bucket(url, credentials)


def _new_bucket(endpoint: str, environment: dict[str, str]) -> S3:
    name = f"mdc-test-{secrets.token_hex(6)}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment.get("AWS_REGION", "us-east-1"),
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}),
    )
    try:
        client.create_bucket(Bucket=name)
    except BotoCoreError as error:
        missing("S3", error)
    finally:
        client.close()
    return S3(f"s3://{name}", {**environment, "AWS_ENDPOINT_URL": endpoint})


@contextmanager
def process(command: list[str], is_ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the test's own, from when it is ready."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pause = threading.Event()
        for _ in range(600):
            if is_ready():
                break
            assert started.poll() is None, f"{command[0]} ended with status {started.returncode}"
            pause.wait(0.1)
        else:
            raise AssertionError(f"{command} was not ready within a minute")
        yield started
    finally:
        started.terminate()
        started.wait(30)


def socket_answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


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
