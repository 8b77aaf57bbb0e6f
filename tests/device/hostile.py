"""A proxy that does to the traffic what bad lines, caches, portals and attackers do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What the proxy is about to send, to be altered."""

    status: int
    headers: dict[str, str]
    body: bytes
    send: int | None = None
    """Bytes of the body after which it stops; None: all."""
    stall: bool = False
    """Where it stops, it keeps the connection open."""
    fetch: Callable[..., Answer] = field(repr=False, default=lambda **_: Answer(500, {}, b""))
    """Asks again, of the `stale` server or without `ranges`."""


Mood = Callable[[Answer], Answer]


def honest(answer: Answer) -> Answer:
    return answer


def truncate(answer: Answer) -> Answer:
    answer.send = len(answer.body) // 3
    return answer


def truncate_cleanly(answer: Answer) -> Answer:
    """As a proxy that does not pass on the length: the end of the connection is the end of the body."""
    answer.headers.pop("Content-Length")
    answer.body = answer.body[: len(answer.body) // 2]
    return answer


def stall(answer: Answer) -> Answer:
    answer.send, answer.stall = len(answer.body) // 2, True
    return answer


def drop(answer: Answer) -> Answer:
    answer.send = -1
    return answer


def ignore_range(answer: Answer) -> Answer:
    return answer.fetch(ranges=False)


def serve_stale(answer: Answer) -> Answer:
    return answer.fetch(stale=True)


def mix_versions(answer: Answer) -> Answer:
    """The old version's bytes under the new version's headers."""
    answer.body = answer.fetch(stale=True).body
    return answer


def mix_in_the_middle(answer: Answer) -> Answer:
    half = len(answer.body) // 2
    answer.body = answer.body[:half] + answer.fetch(stale=True).body[half:]
    return answer


def shift(answer: Answer) -> Answer:
    """The right header fields over bytes from somewhere else."""
    answer.body = answer.body[7:] + answer.body[:7]
    return answer


def flip(answer: Answer) -> Answer:
    middle = len(answer.body) // 2
    answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]
    return answer


def prolong(answer: Answer) -> Answer:
    answer.headers.pop("Content-Length")
    answer.body += b"and more"
    return answer


def portal(answer: Answer) -> Answer:
    body = b"<html>Please log in to this network</html>"
    return Answer(200, {"Content-Type": "text/html", "Content-Length": str(len(body))}, body)


def endless(answer: Answer) -> Answer:
    """Far more than a manifest, or a subset, can have."""
    answer.headers.pop("Content-Length")
    answer.body += b" " * (17 << 20)
    return answer


def fail(answer: Answer) -> Answer:
    return Answer(503, {"Retry-After": "0", "Content-Length": "4"}, b"busy")


def throttle(answer: Answer) -> Answer:
    return Answer(429, {"Content-Length": "0"}, b"")


def compress(answer: Answer) -> Answer:
    answer.headers["Content-Encoding"] = "gzip"
    return answer


def wrong_place(answer: Answer) -> Answer:
    answer.status, answer.headers["Content-Range"] = 206, "bytes 0-9/999999"
    return answer


MOODS: tuple[Mood, ...] = (
    truncate,
    truncate_cleanly,
    stall,
    drop,
    ignore_range,
    serve_stale,
    mix_versions,
    mix_in_the_middle,
    shift,
    flip,
    prolong,
    portal,
    endless,
    fail,
    throttle,
    compress,
    wrong_place,
)


class Proxy:
    """Forwards to the server at `upstream`; the n-th request for a subset meets the n-th of `moods`."""

    def __init__(self, upstream: str, stale: str) -> None:
        self.upstream, self.stale = upstream, stale
        self.moods: list[Mood] = []
        self.manifest_moods: list[Mood] = []
        self.url = ""
        self.closing = threading.Event()

    def next_mood(self, path: str) -> Mood:
        moods = self.manifest_moods if path.startswith("/v1/") else self.moods
        return moods.pop(0) if moods else honest

    def forward(self, path: str, headers: Any, *, stale: bool = False, ranges: bool = True) -> Answer:
        passed = {
            name: value
            for name, value in headers.items()
            if name.lower() not in ("host", "connection")
            and (ranges or name.lower() != "range")
            and not (stale and name.lower() == "if-match")
        }
        if stale:  # it answers with what it has, whatever version is asked for
            path = path.replace("%402", "").replace("@2", "")
        connection = http.client.HTTPConnection(urlsplit(self.stale if stale else self.upstream).netloc)
        try:
            connection.request("GET", path, headers=passed)
            response = connection.getresponse()
            kept = ("Content-Length", "Content-Range", "ETag", "Content-Type")
            found = {name: response.headers[name] for name in kept if name in response.headers}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        answer = self.proxy.forward(self.path, self.headers)
        answer.fetch = lambda **options: self.proxy.forward(self.path, self.headers, **options)
        answer = self.proxy.next_mood(self.path)(answer)
        self.close_connection = True
        if answer.send == -1:
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.send])
        if answer.stall:
            self.proxy.closing.wait(timeout=60)


@contextmanager
def proxying(upstream: str, stale: str) -> Iterator[Proxy]:
    """The proxy between a client and `upstream`; `stale` serves an older version of the same set."""
    proxy = Proxy(upstream, stale)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HostileHandler", (Handler,), {"proxy": proxy}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are expected
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
