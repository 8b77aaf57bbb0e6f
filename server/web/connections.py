"""HTTP connections with limits that hold before any key is read: every wait ends, every buffer is bounded.

uvicorn's httptools protocol limits neither size nor duration of headers, nor idle connections. Status codes follow RFC
9110 (431, 408) and RFC 6585.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

CONNECTIONS = 3000
"""Connections of a process. Beyond it the one that has waited longest for a request is closed."""
MAX_FILES = 65_536
"""A process asks for no more open files than this."""
OTHER_FILES = 128
"""Files that a process has open besides: stores, uploads, logs."""

HEAD_BYTES = 32 * 1024
"""Request line and headers of a request, together: as much as nginx passes on unless it is told to."""
HEADERS = 100
"""Header fields of a request."""
HEAD_SECONDS = 10.0
"""From the first byte, or the connection, to the end of the headers."""
BODY_SECONDS = 30.0
"""Within each such time a body must bring `BODY_BYTES`, or end."""
BODY_BYTES = 4 * 1024
LINGER_SECONDS = 10.0
"""From an answer to the end of a body that it did not wait for."""
SEND_SECONDS = 120.0
"""A reader takes what waits in the socket (about 64 KiB) within this time."""
PIPELINED = 8
"""Requests that may come on a connection before the first of them is answered."""
READ_BYTES = 64 * 1024
"""Bytes of a body taken from a socket at once; asyncio's own 256 KiB would be held by every connection."""
UNASKED_BYTES = 8 * 1024
"""Bytes taken of what the application has not asked for yet."""

_TOO_LARGE_BODY = (
    b'{"type":"urn:mdc:problem:headers-too-large","title":"Headers too large","status":431,'
    b'"detail":"request line and headers have at most %d bytes and %d fields: send less",'
    b'"instance":"","code":"headers-too-large","errors":[],"request_id":""}' % (HEAD_BYTES, HEADERS)
)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_TOO_LARGE_BODY), _TOO_LARGE_BODY)
)
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)

# By server, the idle connections, longest idle first. New connections may replace them.
_waiting: WeakKeyDictionary[ServerState, OrderedDict[BoundedHttp, None]] = WeakKeyDictionary()


def raise_file_limit() -> None:
    """Raise the limit of open files, and so of connections, to the system's maximum."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_connections() -> int:
    """The most connections of this process: `CONNECTIONS`, or what its limit of files leaves."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if files == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, files - OTHER_FILES))


class BoundedHttp(HttpToolsProtocol):
    """One connection, created by uvicorn for `http=BoundedHttp`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        super().__init__(config, server_state, app_state, _loop)
        self._waiters = _waiting.setdefault(server_state, OrderedDict())
        self._in_head = True
        self._has_begun = False
        self._has_moved = False
        self._partial_bytes = 0
        self._head_bytes = 0
        self._body_bytes = 0
        self._body_total = 0
        self._is_too_large = False
        self._deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection; if there are too many, close the one that has been idle longest."""
        super().connection_made(transport)
        self._read_at_most(UNASKED_BYTES)
        if len(self.connections) > max_connections():
            if not self._waiters:
                transport.write(_BUSY)
                transport.close()
                return
            self._waiters.popitem(last=False)[0].transport.abort()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        self._stop_waiting()
        self._unset_send_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and close a connection whose headers are too large or too slow."""
        self._head_is_whole = self._has_moved = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._head_is_whole or self._has_moved:
            self._partial_bytes = 0
        else:
            # The parser buffers an incomplete field, also of trailers, without a callback.
            self._partial_bytes += len(data)
            if self._partial_bytes > HEAD_BYTES:
                self._is_too_large = True
                self.send_400_response("")
                return
        if not self._in_head:
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if self._deadline is None and (self._has_begun or is_idle):
            self._await_head()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._has_begun = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header field."""
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES or len(self.headers) >= HEADERS:
            self._is_too_large = True
            raise ValueError("the headers are too large")  # ends the parser, which calls `send_400_response`

    def on_headers_complete(self) -> None:
        """The headers are complete."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests before the first is answered")
        self._stop_waiting()
        self._in_head, self._has_begun, self._head_is_whole = False, False, True
        self._body_bytes = self._body_total = 0
        super().on_headers_complete()
        self._deadline = self.loop.call_later(BODY_SECONDS, self._check_body)

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        self._body_bytes += len(body)
        self._has_moved = True
        super().on_body(body)
        self._body_total += len(body)
        if self._body_total > READ_BYTES:  # enough progress
            self._read_at_most(READ_BYTES)
        elif len(self.cycle.body) >= UNASKED_BYTES and not self.cycle.response_complete:
            self.flow.pause_reading()  # until the application reads: no more is buffered while a key is checked

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._unset_deadline()
        self._read_at_most(UNASKED_BYTES)
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn closes idle connections."""
        super().on_response_complete()
        if self.pipeline or self.transport.is_closing():
            return
        self._waiters[self] = None
        if not self._in_head:  # nobody reads the rest, which could trickle in for hours
            self._unset_deadline()
            self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Respond to a request that is malformed or too large."""
        self._stop_waiting()
        if not self._is_too_large:
            super().send_400_response(msg)
            return
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def pause_writing(self) -> None:
        """The reader is slower than the server."""
        super().pause_writing()
        self._unset_send_deadline()
        self._send_deadline = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._unset_send_deadline()
        super().resume_writing()

    def _read_at_most(self, size: int) -> None:
        if hasattr(self.transport, "max_size"):
            self.transport.max_size = size

    def _await_head(self) -> None:
        self._waiters[self] = None
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _check_body(self) -> None:
        """Close a connection whose body does not grow, unless the server itself paused reading."""
        if not self.flow.read_paused and self._body_bytes < BODY_BYTES:
            self.transport.abort()
            return
        self._body_bytes = 0
        self._deadline = self.loop.call_later(BODY_SECONDS, self._check_body)

    def _stop_waiting(self) -> None:
        self._waiters.pop(self, None)
        self._unset_deadline()

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _unset_send_deadline(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None
