"""Stores that accept and say nothing: callers get 503 in time, and `/healthz` notices nothing of it."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from server.settings import Settings
from server.store import deadline, objects
from server.store.db import Database
from server.web import store_threads
from tests.server.conftest import serving, sqlite_only
from tests.server.toyset import publish
from tests.services import free_port, postgres_database, process

pytestmark = pytest.mark.process


class Forwarder:
    """Passes bytes on to a server, until it is told to keep them."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.passes = threading.Event()
        self.passes.set()
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for sock in self._open:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.passes.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Connections are accepted by the kernel, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def forwarder() -> Iterator[tuple[Forwarder, str]]:
    """In front of a PostgreSQL database, and its URL by way of the forwarder."""
    with postgres_database() as url:
        parsed = make_url(url)
        made = Forwarder(parsed.host or "127.0.0.1", parsed.port or 5432)
        through = parsed.set(host="127.0.0.1", port=made.port, query={})
        yield made, through.render_as_string(hide_password=False)
        made.passes.set()
        made.close()


def test_a_database_that_hangs_is_given_up(
    forwarder: tuple[Forwarder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "ANSWER_SECONDS", 0.5)
    between, url = forwarder
    database = Database(url)
    with database.read() as session:
        assert session.scalar(text("SELECT 1")) == 1
    between.passes.clear()
    with pytest.raises(OperationalError, match=r"not answered|timeout"), database.read() as session:
        session.scalar(text("SELECT 1"))
    with pytest.raises(OperationalError, match="hung a moment ago"), database.read():
        pass
    between.passes.set()
    monkeypatch.setattr("server.store.db.PAUSE_SECONDS", 0)
    database._ask_again = 0
    with database.read() as session:
        assert session.scalar(text("SELECT 1")) == 1
    database.dispose()


def test_the_api_lives_on_while_its_database_hangs(
    forwarder: tuple[Forwarder, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between, url = forwarder
    monkeypatch.setenv("MDC_DATABASE_URL", url)
    monkeypatch.setenv("MDC_OBJECTS_URL", f"file://{tmp_path}/objects")
    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MDC_SECRET", "s" * 32)
    from mdc_core.delivery.signing import dump_private_keys
    from server.access.tokens import create_key
    from server.store import migrate
    from tests.conftest import SIGNING_KEY

    monkeypatch.setenv("MDC_SIGNING_KEYS", dump_private_keys([SIGNING_KEY]))
    migrate.upgrade(url)
    database = Database(url)
    with database.begin() as session:
        _, token = create_key(session, b"s" * 32, name="x", scopes=["admin"])
    database.dispose()
    port = free_port()
    base = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{base}/readyz").is_success
        except httpx.TransportError:
            return False

    def ask(_: int) -> int:
        return httpx.get(
            f"{base}/v1/jobs", headers={"Authorization": f"Bearer {token}"}, timeout=60
        ).status_code

    with (
        process([sys.executable, "-m", "server", "--port", str(port)], ready),
        ThreadPoolExecutor(60) as pool,
    ):
        assert ask(0) == 200
        between.passes.clear()
        asked = [pool.submit(ask, number) for number in range(60)]
        for _ in range(20):
            assert httpx.get(f"{base}/healthz", timeout=5).status_code == 200
        assert {done.result() for done in asked} == {503}
        between.passes.set()


@sqlite_only
def test_the_api_lives_on_while_its_object_store_hangs(
    make_settings: Callable[..., Settings], silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "READ_SECONDS", 1)
    monkeypatch.setattr(objects, "RETRY_SECONDS", 1)
    monkeypatch.setattr(store_threads, "THREADS", 4)
    monkeypatch.setattr(store_threads, "QUEUE_SECONDS", 0.2)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    with serving(make_settings()) as api:
        owner = api.admin["Authorization"].split("_")[1]
        publish(api.services, owner, "toy", 1)
        object.__setattr__(api.services, "objects", objects.open_objects("s3://bucket/"))
        monkeypatch.setattr(api.services.ranks, "_objects", api.services.objects)
        with ThreadPoolExecutor(30) as pool:
            asked = [
                pool.submit(api.client.get, f"/subsets/{1 + number % 3}?set=toy", headers=api.admin)
                for number in range(30)
            ]
            for _ in range(5):
                assert api.client.get("/healthz").status_code == 200
                assert api.client.get("/v1/sets", headers=api.admin).status_code == 200
            answers = [done.result() for done in asked]
        assert {answer.status_code for answer in answers} == {503}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
