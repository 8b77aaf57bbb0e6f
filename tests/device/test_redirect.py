"""Sent on to an object store, a device ends with the right bytes or a clear error, and tells the store no secret."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from mdc_core.delivery import rankmajor
from mdc_device import api
from mdc_device.cli import main
from mdc_device.decode import open_subset
from tests.device.live import live_api
from tests.services import S3

ACCESS = api.Access("mdc_1_secret", timeout_s=10, retries=1)
DENIED = (
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
)


@dataclass
class Reply:
    """What the store is about to send, to be altered."""

    status: int
    body: bytes
    headers: dict[str, str]
    whole: bytes = field(repr=False, default=b"")


Mood = Callable[[Reply], Reply]


@dataclass
class Store:
    """One object at a URL with a signature in its query, as S3 has it."""

    content: bytes
    url: str = ""
    moods: list[Mood] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    def reply(self, headers: dict[str, str]) -> Reply:
        self.requests.append(headers)
        tag = f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'
        if "authorization" in headers:
            return Reply(
                400, b"<Error>only one auth mechanism allowed</Error>", {"Content-Type": "application/xml"}
            )
        if headers.get("if-match", tag) != tag:
            return Reply(412, b"<Error>PreconditionFailed</Error>", {"Content-Type": "application/xml"})
        size = len(self.content)
        common = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if match is None:
            return Reply(200, self.content, common, self.content)
        first, end = int(match[1]), min(int(match[2]) + 1, size)
        common["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        return Reply(206, self.content[first:end], common, self.content)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: Store

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        reply = self.store.reply({name.lower(): value for name, value in self.headers.items()})
        if self.store.moods:
            reply = self.store.moods.pop(0)(reply)
        self.send_response(reply.status)
        for name, value in {
            "Content-Length": str(len(reply.body)),
            "Connection": "close",
            **reply.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)
        self.close_connection = True


@pytest.fixture
def store(device: Any) -> Iterator[Store]:
    """Another origin that has the object of `device`, which sends everybody there."""
    found = Store(device.obj)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("StoreHandler", (Handler,), {"store": found}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are expected
    found.url = device.store = f"http://127.0.0.1:{server.server_address[1]}/bucket/key?X-Signature=s%2F1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def grown(device: Any, tmp_path: Path) -> Path:
    """Subset 2; its header is not in the store, so it came through the server."""
    api.fetch(device.url, "toy", tmp_path / "toy.mdc", k=2, access=ACCESS)
    return tmp_path / "toy.mdc"


def test_growing_takes_the_bytes_from_the_store(device: Any, store: Store, tmp_path: Path) -> None:
    file = grown(device, tmp_path)
    assert store.requests == []
    done = api.grow(file, 4, access=ACCESS)
    assert (file.read_bytes(), done.received_bytes) == (device.subset(4), 2 * device.info.rank_bytes)
    (asked,) = store.requests
    start = rankmajor.subset_size(device.info, 2)
    assert asked["range"] == f"bytes={start}-{len(device.subset(4)) - 1}"
    assert not {"authorization", "if-match", "if-range", "if-none-match", "cookie"} & set(asked)
    assert device.requests[-1][1]["authorization"] == "Bearer mdc_1_secret"


def test_the_whole_set_comes_from_the_store(device: Any, store: Store, tmp_path: Path) -> None:
    api.fetch(device.url, "toy", tmp_path / "toy.mdc", k=5, access=ACCESS)
    assert (tmp_path / "toy.mdc").read_bytes() == device.obj
    assert [headers.get("range") for headers in store.requests] == [None]


def test_damaged_ranks_are_mended_from_the_store(device: Any, store: Store, tmp_path: Path) -> None:
    file = grown(device, tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert api.verify(file, repair=True, access=ACCESS).repaired_ranks == (2,)
    assert file.read_bytes() == device.subset(2)
    assert len(store.requests) == 1


def expired(reply: Reply) -> Reply:
    return Reply(403, DENIED, {"Content-Type": "application/xml"})


def busy(reply: Reply) -> Reply:
    return Reply(503, b"<Error><Code>SlowDown</Code></Error>", {"Retry-After": "0"})


def cut(reply: Reply) -> Reply:
    return Reply(206, reply.body[:100], {**reply.headers, "Content-Length": str(len(reply.body))})


def flipped(reply: Reply) -> Reply:
    return Reply(206, bytes([reply.body[0] ^ 1]) + reply.body[1:], reply.headers)


def any_total(reply: Reply) -> Reply:
    return Reply(
        206, reply.body, {**reply.headers, "Content-Range": reply.headers["Content-Range"][:-4] + "*"}
    )


def everything(reply: Reply) -> Reply:
    headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
    return Reply(200, reply.whole, headers)


def elsewhere(reply: Reply) -> Reply:
    return Reply(206, reply.body, {**reply.headers, "Content-Range": "bytes 0-9/99999"})


def without_a_place(reply: Reply) -> Reply:
    headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
    return Reply(206, reply.body, headers)


def onward(reply: Reply) -> Reply:
    return Reply(302, b"", {"Location": "/bucket/key?again"})


@pytest.mark.parametrize(
    "mood", [expired, busy, cut, flipped, any_total, onward], ids=lambda mood: mood.__name__
)
def test_one_bad_answer_of_the_store_is_overcome(
    device: Any, store: Store, tmp_path: Path, mood: Mood
) -> None:
    file = grown(device, tmp_path)
    store.moods = [mood]
    assert main(["grow", str(file), "--k", "4"]) == 0
    assert file.read_bytes() == device.subset(4)


@pytest.mark.parametrize(
    ("mood", "code", "message"),
    [
        (expired, 3, "127.0.0.1, to which the server redirected, refused: Forbidden .HTTP 403.*again"),
        (busy, 3, "refused: Service Unavailable .HTTP 503"),
        (flipped, 5, "rank 3 .*arrived damaged twice"),
        (everything, 5, "announces [0-9]+ bytes"),
        (elsewhere, 5, "returned the range 'bytes 0-9/99999'"),
        (without_a_place, 5, "returned the range None"),
        (onward, 3, "redirect"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_store_is_a_clear_error(
    device: Any,
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mood: Mood,
    code: int,
    message: str,
) -> None:
    file = grown(device, tmp_path)
    store.moods = [mood] * 100
    assert main(["grow", str(file), "--k", "4", "--retries", "1"]) == code
    assert re.search(message, capsys.readouterr().err)
    assert open_subset(file).k == 2
    store.moods = []
    assert main(["grow", str(file), "--k", "4"]) == 0
    assert file.read_bytes() == device.subset(4)


def test_a_store_that_cannot_be_reached(
    device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = grown(device, tmp_path)
    for location in ("http://127.0.0.1:9/x", "ftp://127.0.0.1/x", "http://[::1"):
        device.store = location
        assert main(["grow", str(file), "--k", "4", "--retries", "0"]) == 3
        assert "no complete response" in capsys.readouterr().err
    assert open_subset(file).k == 2


def test_the_api_and_a_real_object_store(tmp_path: Path, s3: S3) -> None:
    """S3, and the API that sends devices there."""
    (tmp_path / "data").mkdir()
    settings = {"MDC_OBJECTS_URL": s3.url, "MDC_DOWNLOADS": "redirect"}
    with live_api(tmp_path / "data", **settings) as live:
        access = api.Access(live.key, timeout_s=10, retries=0)
        for k in (1, 4):
            api.fetch(live.url, "toy", tmp_path / str(k), k=k, access=access)
            assert (tmp_path / str(k)).read_bytes() == live.subset(k)
        done = api.grow(tmp_path / "1", 3, access=access)
        assert (tmp_path / "1").read_bytes() == live.subset(3)
        assert done.received_bytes == len(live.subset(3)) - len(live.subset(1))
        first, end = len(live.subset(1)), len(live.subset(3))
        asked = {"Authorization": f"Bearer {live.key}", "Range": f"bytes={first}-{end - 1}"}
        sent = httpx.get(f"{live.url}/subsets/3?set=toy@1", headers=asked)
        assert sent.headers["Location"].startswith(s3.environment["AWS_ENDPOINT_URL"])
