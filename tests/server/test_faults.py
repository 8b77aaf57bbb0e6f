"""A full disk, and stores that do not answer: a clear error, and nothing half done."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from server.access.tokens import create_key
from server.app import create_app
from server.services import Services
from server.settings import Settings
from server.store import datasets, installation
from tests.server.conftest import Api, TestClient, bearer, sqlite_only
from tests.services import S3, free_port

postgres_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def npz() -> bytes:
    """About 400 kB that cannot be compressed."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 32, 32), dtype=np.uint8)
    np.savez(file, x_train=pixels, y_train=np.arange(400) % 2)
    return file.getvalue()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk without room: a file that would become larger cannot be written."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@postgres_only
def test_an_upload_that_the_disk_has_no_room_for(api: Api, tmp_path: Path) -> None:
    headers = {**api.admin, "Content-Type": "application/x-npz"}
    with files_of_at_most(300_000):
        refused = api.client.post("/v1/datasets", content=npz(), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (507, "no-room")
    for folder in ("uploads", "objects"):
        left = [path.name for path in (tmp_path / "data" / folder).rglob("*") if path.is_file()]
        assert left in ([], [installation.KEY])
    with api.services.db.read() as session:
        assert datasets.page(session, owner_id=None, after=None, limit=9) == []
    again = api.client.post("/v1/datasets", content=npz(), headers=headers)
    assert again.status_code == 201


@pytest.fixture
def with_s3(make_settings: Callable[..., Settings], s3: S3) -> Iterator[Api]:
    app = create_app(make_settings(objects_url=s3.url))
    services: Services = app.state.services
    with TestClient(app, raise_server_exceptions=False) as client:
        with services.db.begin() as session:
            _, token = create_key(session, services.secret_key, name="admin", scopes=["admin"])
        yield Api(client, services, bearer(token))


@postgres_only
def test_an_upload_to_s3(with_s3: Api) -> None:
    headers = {**with_s3.admin, "Content-Type": "application/x-npz"}
    kept = with_s3.client.post("/v1/datasets", content=npz(), headers=headers)
    assert kept.status_code == 201, kept.text
    (stored,) = with_s3.services.objects.list("datasets")
    assert with_s3.services.objects.get(stored.key) == npz()


@sqlite_only
def test_an_upload_while_s3_is_away(
    make_settings: Callable[..., Settings], s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("server.store.objects.RETRY_SECONDS", 1)
    app = create_app(make_settings(objects_url=s3.url))
    services: Services = app.state.services
    with TestClient(app, raise_server_exceptions=False) as client:
        with services.db.begin() as session:
            _, token = create_key(session, services.secret_key, name="admin", scopes=["admin"])
        headers = {**bearer(token), "Content-Type": "application/x-npz"}
        refused = client.post("/v1/datasets", content=npz(), headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (503, "store-unavailable")
        assert "Retry-After" in refused.headers
        with services.db.read() as session:
            assert datasets.page(session, owner_id=None, after=None, limit=9) == []
        assert client.get("/readyz").status_code == 503


@sqlite_only
def test_a_database_that_is_away(api: Api) -> None:
    with api.services.db.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs RENAME TO gone")
    refused = api.client.get("/v1/jobs", headers=api.admin)
    assert (refused.status_code, refused.json()["code"]) == (503, "store-unavailable")
