"""Real sockets against the protocol class: deadlines, sizes, and room for who comes next."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from server.web import connections
from server.web.connections import HEAD_BYTES, HEADERS, BoundedHttp
from tests.services import free_port

pytestmark = pytest.mark.process

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"%9d" % size})


@contextmanager
def serving(app: Any = read_all) -> Iterator[int]:
    """The port of a server of this application."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, http=BoundedHttp, loop="asyncio", lifespan="off", log_level="critical")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield port
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def port(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name, value in getattr(request, "param", {}).items():
        monkeypatch.setattr(connections, name, value)
    with serving() as number:
        yield number


def connected(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port))
    made.settimeout(20)
    return made


def answer(sock: socket.socket, data: bytes = b"") -> bytes:
    """All that comes until the server closes the connection."""
    got = b""
    try:
        sock.sendall(data)
        while piece := sock.recv(65536):
            got += piece
    except (ConnectionResetError, BrokenPipeError):
        pass
    return got


def is_alive(port: int) -> bool:
    return httpx.post(f"http://127.0.0.1:{port}", content=b"abc", timeout=20).text.strip() == "3"


@pytest.mark.parametrize(
    "head",
    [
        GET + b"A: " + b"x" * HEAD_BYTES,
        GET + b"A: " + b"x" * 2**20,
        GET + b"".join(b"A%d: 1\r\n" % number for number in range(HEADERS + 1)),
        b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n",
        GET + b"A" * HEAD_BYTES,
    ],
)
def test_headers_that_are_too_large_are_refused_as_soon_as_they_are(port: int, head: bytes) -> None:
    with connected(port) as sock:
        got = answer(sock, head)  # without an end: the server answers before there is one
    assert got.startswith(b"HTTP/1.1 431 ") or not got  # reset, where it closed before it had read all of it
    assert is_alive(port)


def test_headers_below_the_limit_pass(port: int) -> None:
    headers = {f"a{number}": "x" * 100 for number in range(HEADERS - 10)}
    assert httpx.get(f"http://127.0.0.1:{port}", headers=headers).status_code == 200


@pytest.mark.parametrize("port", [{"HEAD_SECONDS": 0.5}], indirect=True)
@pytest.mark.parametrize("begin", [b"", b"\r\n", b"GE", GET])
@pytest.mark.parametrize("second", [False, True])
def test_a_request_that_never_becomes_whole_is_closed(port: int, begin: bytes, second: bool) -> None:
    with connected(port) as sock:
        if second:
            sock.sendall(GET + b"\r\n")
            first = b""
            while not first.endswith(b"%9d" % 0):
                first += sock.recv(65536)
        got = answer(sock, begin)
    assert got == b""


@pytest.mark.parametrize("port", [{"BODY_SECONDS": 0.5}], indirect=True)
def test_a_body_that_does_not_grow_is_closed(port: int) -> None:
    with connected(port) as sock:
        assert answer(sock, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc") == b""
    assert is_alive(port)


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answers without reading."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_body_that_nobody_waits_for_ends_soon_or_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.5)
    monkeypatch.setattr(connections, "BODY_BYTES", 1)
    with serving(refuse) as port, connected(port) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
        got = b""
        while not got.endswith(b"\r\n\r\n"):
            got += sock.recv(65536)
        assert got.startswith(b"HTTP/1.1 401 ")
        if is_whole:
            sock.sendall(b"x" * (100000 - 3) + GET + b"\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")
        else:
            assert is_cut_off_while_it_trickles(sock)


def is_cut_off_while_it_trickles(sock: socket.socket) -> bool:
    """Whether the server closes the connection though one byte after the other comes."""
    sock.settimeout(0.05)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            sock.sendall(b"x")
            if not sock.recv(1):
                return True
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return True
    return False


@pytest.mark.parametrize("port", [{"BODY_SECONDS": 0.5, "BODY_BYTES": 100}], indirect=True)
def test_a_slow_body_that_grows_is_read(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(4):
            time.sleep(0.3)  # the pace is what is tested
            sock.sendall(b"x" * 250)
        assert b"     1000" in answer(sock)


@pytest.mark.parametrize("port", [{"CONNECTIONS": 20}], indirect=True)
def test_idle_connections_make_room(port: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(port)) for _ in range(100)]
        idle[50].sendall(GET)
        for _ in range(3):
            assert is_alive(port)
        assert answer(idle[0]) == b"", "the one that has waited longest was closed"


def test_more_requests_than_may_wait_end_the_connection(port: int) -> None:
    with connected(port) as sock:
        got = answer(sock, (GET + b"\r\n") * 5000)
    assert got.count(b"HTTP/1.1 200") <= 5000
    assert is_alive(port)


def test_a_process_takes_no_more_connections_than_it_may_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.web.connections.resource.getrlimit", lambda _: (1024, 2**20))
    assert connections.max_connections() == 1024 - connections.OTHER_FILES
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("server.web.connections.resource.setrlimit", lambda _, limits: asked.append(limits))
    connections.raise_file_limit()
    assert asked == [(connections.MAX_FILES, 2**20)]


@pytest.mark.parametrize("end", [b"0\r\nA: ", b"5\r\nabcde\r\n0\r\nA"])
def test_trailers_are_bounded_as_headers_are(port: int, end: bytes) -> None:
    begin = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + end
    with connected(port) as sock:
        got = answer(sock, begin + b"x" * 2**20)
    assert got.startswith(b"HTTP/1.1 431 ") or not got
    with connected(port) as sock:
        got = answer(sock, begin[:-1] + b"".join(b"A%d: 1\r\n" % number for number in range(HEADERS + 1)))
    assert b"200" not in got[:20]
    assert is_alive(port)


def test_a_body_waits_in_the_socket_until_it_is_asked_for() -> None:
    """Else whoever waits for its key to be looked up holds as much memory as it likes to send."""
    asked, held = threading.Event(), []

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(asked.wait, 60)
        held.append(len(receive.__self__.body))
        await read_all(scope, receive, send)

    with serving(wait) as port, connected(port) as sock:
        size = 10 * 2**20
        sender = threading.Thread(
            target=sock.sendall,
            args=(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size,),
        )
        sender.start()
        assert is_refused_by_the_socket(sock)
        asked.set()
        sender.join()
        got = b""
        while not got.endswith(b"%9d" % size):
            got += sock.recv(65536)
    assert held[0] <= 2 * connections.UNASKED_BYTES


def is_refused_by_the_socket(sock: socket.socket) -> bool:
    """Whether no more can be sent for a moment: what the server does not read fills the buffers."""
    full = 0
    while full < 3:
        full = 0 if select.select([], [sock], [], 0.1)[1] else full + 1
    return True
