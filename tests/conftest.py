"""What tests of several folders share: the servers of the larger size, and a whole installation of either size."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings as hypothesis_settings

from mdc_core.delivery.signing import PrivateKey, dump_private_keys
from server.settings import Settings
from server.store import migrate
from tests.services import S3, clear, postgres_database, redis_url, s3_bucket, s3_kind

SIGNING_KEY = PrivateKey(bytes(range(32)))
SIZES = ["small", "large"]
both_sizes = pytest.mark.parametrize("size", SIZES, indirect=True)


def pytest_configure() -> None:
    # A shell lets what it starts in the background ignore Ctrl-C, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A busy machine is no fault: no example has to end within a time.
    hypothesis_settings.register_profile("any time", deadline=None)
    hypothesis_settings.load_profile("any time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what follows from where a test lies and what it is given; modules name the rest in `pytestmark`."""
    for item in items:
        if item.path.parent.name in ("e2e", "worker"):
            item.add_marker("process")
        given = getattr(item, "callspec", None)
        if given is not None and any(
            value in ("large", "postgresql") for value in given.params.values() if isinstance(value, str)
        ):
            item.add_marker("servers")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"S3 in these tests: {s3_kind()}")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres_database() as url:
        migrate.upgrade(url)
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with s3_bucket() as s3:
        yield s3


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A place of its own in a bucket; the credentials are in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return S3(f"{s3_server.url}/{secrets.token_hex(6)}", s3_server.environment)


@pytest.fixture
def size(request: pytest.FixtureRequest) -> str:
    """`small`: SQLite, a broker file and a folder; `large`: PostgreSQL, Redis and S3. See `both_sizes`."""
    return getattr(request, "param", "small")


@pytest.fixture
def installation(
    size: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Migrated stores without rows and objects, in the environment for every process that is started."""
    values = {"DATA_DIR": str(tmp_path / "data"), "THREADS": "1"}
    (tmp_path / "data").mkdir()
    if size == "large":
        broker = request.getfixturevalue("redis_broker")
        values |= {
            "DATABASE_URL": request.getfixturevalue("postgres_url"),
            "BROKER_URL": broker,
            "BROKER_PREFIX": f"mdc-test-{secrets.token_hex(6)}:",
            "OBJECTS_URL": request.getfixturevalue("s3").url,
            "SECRET": "s" * 32,
            "SIGNING_KEYS": dump_private_keys([SIGNING_KEY]),
        }
    for name, value in values.items():
        monkeypatch.setenv(f"MDC_{name}", value)
    settings = Settings()
    if size == "small":
        migrate.upgrade(settings.database_url)
    yield settings
    if size == "large":
        clear(settings.database_url)
        forget(settings)


def forget(settings: Settings) -> None:
    """Delete an installation's keys from Redis."""
    with redis.Redis.from_url(settings.broker_url) as client:
        for key in client.scan_iter(f"{settings.broker_prefix}*"):
            client.delete(key)


@pytest.fixture(scope="session")
def redis_broker() -> Iterator[str]:
    with redis_url() as url:
        yield url
