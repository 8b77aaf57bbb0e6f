from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdc_core.errors import ConfigError
from server.store.errors import STORE_ERRORS
from server.store.objects import ObjectStore, open_objects
from tests.services import S3


@pytest.fixture(params=["file", "memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "s3":
        return open_objects(request.getfixturevalue("s3").url)
    return open_objects("memory://" if request.param == "memory" else f"file://{tmp_path}/the objects")


def test_what_is_put_is_got_whole_and_in_ranges(objects: ObjectStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    source = tmp_path / "source"
    source.write_bytes(content)
    objects.put("sets/a", content)
    objects.put("sets/b", source)
    for key in ("sets/a", "sets/b"):
        assert objects.head(key) == len(content)
        assert objects.get(key) == content
        assert objects.get_range(key, 3, 700_001) == content[3:700_001]
        assert b"".join(objects.stream(key, 5, len(content) - 1)) == content[5:-1]
        assert list(objects.stream(key, 7, 7)) == []


def test_a_stream_comes_in_pieces(tmp_path: Path) -> None:
    objects = open_objects(f"file://{tmp_path}/objects")
    objects.put("a", bytes(1_000_000))
    pieces = [len(piece) for piece in objects.stream("a", 0, 1_000_000, 100_000)]
    assert sum(pieces) == 1_000_000
    assert max(pieces) < 200_000


def test_put_replaces_delete_removes_list_lists(objects: ObjectStore) -> None:
    for key in ("jobs/1/a", "jobs/1/b", "jobs/2/a"):
        objects.put(key, b"old")
    objects.put("jobs/1/a", b"new")
    assert objects.get("jobs/1/a") == b"new"
    assert sorted(stored.key for stored in objects.list("jobs/1")) == ["jobs/1/a", "jobs/1/b"]
    assert list(objects.list("nothing")) == []
    objects.delete("jobs/1/a")
    objects.delete("jobs/1/a")
    assert objects.head("jobs/1/a") is None
    assert [stored.key for stored in objects.list("jobs/1")] == ["jobs/1/b"]


def test_no_empty_folders_stay(tmp_path: Path) -> None:
    objects = open_objects(f"file://{tmp_path}/objects")
    objects.put("jobs/1/checkpoints/7", b"x")
    objects.put("jobs/2/checkpoints/7", b"x")
    objects.delete("jobs/1/checkpoints/7")
    assert [path.name for path in (tmp_path / "objects/jobs").iterdir()] == ["2"]
    objects.delete("jobs/2/checkpoints/7")
    assert list((tmp_path / "objects").iterdir()) == []


def test_a_folder_that_goes_meanwhile_is_made_again(tmp_path: Path) -> None:
    """Each writer's delete takes the folder that the others are about to write to."""
    objects = open_objects(f"file://{tmp_path}/objects")

    def write(number: int) -> None:
        for _ in range(200):
            objects.put(f"jobs/1/{number}", b"x")
            assert objects.get(f"jobs/1/{number}") == b"x"
            objects.delete(f"jobs/1/{number}")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [None] * 4


def test_a_missing_object_is_found_missing_by_the_call_itself(objects: ObjectStore) -> None:
    with pytest.raises(FileNotFoundError):
        objects.get("no")
    with pytest.raises(FileNotFoundError):
        objects.get_range("no", 0, 1)
    with pytest.raises(FileNotFoundError):
        objects.stream("no", 0, 1)


def test_a_put_that_fails_leaves_the_old_object_and_no_rest(tmp_path: Path) -> None:
    objects = open_objects(f"file://{tmp_path}/objects")
    objects.put("a", b"old")
    with pytest.raises(FileNotFoundError):
        objects.put("a", tmp_path / "not there")
    assert objects.get("a") == b"old"
    assert [path.name for path in (tmp_path / "objects").iterdir()] == ["a"]


@given(st.sampled_from(["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a#1"]))
def test_keys_stay_inside_the_folder(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    folder = tmp_path_factory.mktemp("keys")
    objects = open_objects(f"file://{folder}/objects")
    with pytest.raises(ValueError, match="not a key"):
        objects.put(key, b"x")


@pytest.mark.parametrize("url", ["file://relative/folder", "file:relative", "ftp://host/x", "nonsense"])
def test_a_wrong_url_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match=url):
        open_objects(url)


@pytest.mark.parametrize("objects", ["file", "memory"], indirect=True)
def test_only_a_remote_store_has_signed_urls(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert objects.url("sets/a", 300) is None
    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    url = open_objects("s3://bucket/prefix").url("sets/a", 300)
    assert url is not None
    parts = urlsplit(url)
    assert parts.path.endswith("/prefix/sets/a")
    assert parse_qs(parts.query)["X-Amz-Expires"] == ["300"]
    assert "secret" not in url


def test_a_store_that_accepts_and_says_nothing_is_away(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.objects.READ_SECONDS", 0.2)
    monkeypatch.setattr("server.store.objects.RETRY_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        objects = open_objects(s3.url)
        for call in (lambda: objects.put("a", b"x"), lambda: objects.get("a"), lambda: objects.head("a")):
            with pytest.raises(STORE_ERRORS):
                call()


def test_a_store_that_fails_for_a_moment_is_asked_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two requests are answered with 503, as a server does that is told to slow down."""
    answered: list[int] = []

    class Overloaded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answered.append(503 if len(answered) < 2 else 200)
            self.send_response(answered[-1])
            for name, value in {"Content-Length": "1", "ETag": '"x"', "Last-Modified": formatdate()}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Overloaded) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        assert open_objects(s3.url).get("a") == b"x"
        server.shutdown()
    assert answered == [503, 503, 200]
