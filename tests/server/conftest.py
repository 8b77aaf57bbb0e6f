"""A migrated database of either kind, and the API on it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from mdc_core.delivery.signing import dump_private_keys
from server.access.tokens import create_key
from server.app import create_app
from server.services import Services
from server.settings import Settings
from server.store import migrate
from server.store.db import Database
from tests.conftest import SIGNING_KEY
from tests.server.toyset import MIXED, publish
from tests.services import clear

with warnings.catch_warnings():
    # The newest Starlette asks for another HTTP client than the one that this project uses.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient as TestClient  # noqa: PLC0414  tests import it from here


@pytest.fixture(scope="session", autouse=True)
def _quiet_log() -> None:
    """Keep log lines out of the output; the default would draw every exception with all local variables."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
    )


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "mdc.sqlite3"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database without rows."""
    if request.param == "sqlite":
        (tmp_path / "data").mkdir()
        path = tmp_path / "data" / "mdc.sqlite3"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    url: str = request.getfixturevalue("postgres_url")
    yield url
    clear(url)


# For what does not depend on the database.
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def owner(db: Database) -> str:
    """Id of an API key that owns what a test makes."""
    return make_owner(db)


def make_owner(db: Database) -> str:
    with db.begin() as session:
        row, _ = create_key(session, b"k" * 32, name="owner", scopes=["jobs:write"])
        return row.id


@dataclass
class Api:
    """The API as callers with different keys see it."""

    client: TestClient
    services: Services
    admin: dict[str, str]

    def key(self, *scopes: str) -> dict[str, str]:
        """Headers with a new key of these scopes."""
        answer = self.client.post(
            "/v1/keys", json={"name": "test", "scopes": list(scopes)}, headers=self.admin
        )
        assert answer.status_code == 201, answer.text
        return bearer(answer.json()["key"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def make_settings(database_url: str, tmp_path: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        return Settings(
            **{
                "data_dir": tmp_path / "data",
                "database_url": database_url,
                "secret": SecretStr("s" * 32),
                "signing_keys": SecretStr(dump_private_keys([SIGNING_KEY])),
                "upload_max_bytes": 2**20,
                **changes,
            }
        )

    return make


@contextmanager
def serving(settings: Settings) -> Iterator[Api]:
    """The API with these settings, and a new admin key."""
    app = create_app(settings)
    services: Services = app.state.services
    with TestClient(app, raise_server_exceptions=False) as client:
        with services.db.begin() as session:
            _, token = create_key(session, services.secret_key, name="admin", scopes=["admin"])
        yield Api(client, services, bearer(token))


@pytest.fixture
def api(make_settings: Callable[..., Settings]) -> Iterator[Api]:
    with serving(make_settings()) as served:
        yield served


@dataclass
class Published:
    """A set `toy` with two versions, of different tiles."""

    api: Api
    reader: dict[str, str]
    objects: tuple[bytes, bytes]

    @property
    def owner(self) -> str:
        """Id of the key that owns it."""
        return self.api.admin["Authorization"].split("_")[1]

    def get(self, url: str, method: str = "GET", **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.api.client.request(method, url, headers={**self.reader, **named})


@pytest.fixture
def toy(api: Api) -> Published:
    published = Published(api, api.key("subsets:read"), (b"", b""))
    published.objects = (
        publish(api.services, published.owner, "toy", 1),
        publish(api.services, published.owner, "toy", 2),
    )
    return published


@pytest.fixture
def mixed(toy: Published) -> Published:
    """Beside `toy` a set `mixed`, of which sizes 3 and 4 are not better than random real images."""
    publish(toy.api.services, toy.owner, "mixed", 3, MIXED)
    return toy
