"""The conversation with the server: requests, refusals in words, closed byte ranges."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import httpx

from mdc_core.delivery import problem_details
from mdc_core.errors import ConfigError, FormatError
from mdc_device.errors import RefusedError, UnreachableError
from mdc_device.files import Scanner

CONNECT_S = 10.0
LONGEST_S = 86_400.0
"""Longest silence that can be waited for: no socket takes any number of seconds."""
SMALL_BYTES = 16 << 20
"""More than any manifest, key set or problem has."""


@dataclass(frozen=True)
class Access:
    """How this device speaks to the server."""

    key: str | None = None
    """API key."""
    timeout_s: float = 30.0
    """Seconds without a single byte after which a connection counts as broken."""
    retries: int = 4
    """Attempts that may follow a failure; those that bring the file forward are not counted."""
    keyset: Mapping[str, Any] | None = None
    """The only keys whose signature counts, a JWKS; None: those that were pinned, or the server's at first."""
    unsigned: bool = False
    """Whether a server that signs nothing is believed all the same."""

    def __post_init__(self) -> None:
        if self.key is not None and not (self.key and self.key.isascii() and self.key.isprintable()):
            raise ConfigError("the key is empty or has characters that no key has: copy it again")
        if not 0 < self.timeout_s <= LONGEST_S:  # what is not a number fails the comparison too
            raise ConfigError(
                f"timeout_s is {self.timeout_s}: give a number of seconds above 0, {LONGEST_S:g} at most"
            )
        if self.retries < 0:
            raise ConfigError(f"retries is {self.retries}: give a whole number, 0 or more")


def connect(url: str, access: Access) -> httpx.Client:
    """A connection to the server at `url`, to be closed by the caller."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the server's URL is {url!r}: it should begin with http:// or https://")
    key = access.key
    # A proxy that compresses would break ranges and digests.
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        timeout = httpx.Timeout(access.timeout_s, connect=min(access.timeout_s, CONNECT_S))
        return httpx.Client(
            base_url=url, headers=headers, timeout=timeout, follow_redirects=True, verify=_certificates()
        )
    except httpx.InvalidURL as error:
        raise ConfigError(f"the server's URL is {url!r}: {error}") from None


@cache
def _certificates() -> ssl.SSLContext:
    """What tells the right server from another; reading the certificates takes longer than a small request."""
    return httpx.create_ssl_context()


@contextmanager
def answer(
    http: httpx.Client,
    path: str,
    headers: Mapping[str, str] | None = None,
) -> Iterator[httpx.Response]:
    """A successful answer to GET, its body still to be read.

    Raises `RefusedError` for 4xx and `UnreachableError` for 5xx and broken connections, also when it breaks
    while the body is being read.
    """
    try:
        with http.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                _refuse(response)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise FormatError(
                    f"{response.url} came with Content-Encoding {response.headers['Content-Encoding']!r}: "
                    "something between this device and the server changes what is delivered"
                )
            yield response
    except httpx.HTTPError as error:
        if (refused := _certificate_fault(error)) is not None:
            raise FormatError(
                f"the certificate of {_asked(error, http)} is not to be trusted ({refused}): check the URL and this "
                "device's clock; for a server with an authority of your own set SSL_CERT_FILE to its certificate"
            ) from error
        reason = str(error) or type(error).__name__
        raise UnreachableError(f"no complete answer from {http.base_url}: {reason}") from error
    except httpx.InvalidURL as error:
        raise ConfigError(f"{path!r} makes no valid address: {error}") from None


def _asked(error: httpx.HTTPError, http: httpx.Client) -> str:
    """The host that was spoken to: after a redirect another than the server."""
    try:
        return error.request.url.host
    except RuntimeError:  # httpx knows none
        return http.base_url.host


def _certificate_fault(error: BaseException | None) -> str | None:
    """Why TLS does not believe the other side; None when that is not what went wrong."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of a resource whose address names its version."""

    path: str
    """Of the resource, relative to the server's URL, with its query."""
    etag: str
    """What the server must call it: the sha256 of the whole resource."""
    start: int
    """First byte."""
    end: int
    """One past the last byte."""
    size: int
    """Bytes of the whole resource."""


def receive(http: httpx.Client, span: Span, file: BinaryIO, scanner: Scanner | None = None) -> Iterator[int]:
    """Write the bytes of `span` to the same place of `file`, yielding the count of every piece.

    Those that follow on what has passed a `scanner` pass it too.

    The server may send the request on to an object store, which has the same bytes at the same place of a longer
    object, and entity tags of its own: so no precondition is sent, and the digests judge what comes.

    A server that sends the whole instead of the range is listened to, but only the bytes of `span` are written:
    what the file holds before them stays. `FormatError` when the answer is of another version or range, or longer
    than it should be. An answer that ends early without an error just yields less.
    """
    whole = (span.start, span.end) == (0, span.size)
    headers = {} if whole else {"Range": f"bytes={span.start}-{span.end - 1}"}
    with answer(http, span.path, headers) as response:
        found = response.headers.get("ETag", "").removeprefix("W/").strip('"')
        if found and found != span.etag and not response.history:
            raise FormatError(
                f"{response.url} is {found}, but the manifest describes {span.etag}: something between this device "
                "and the server keeps old copies; try again later"
            )
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            _check_content_range(response, f"bytes {span.start}-{span.end - 1}")
            position, last = span.start, span.end
        else:
            position, last = 0, span.size
        _check_length(response, last - position)
        file.seek(span.start)
        for piece in response.iter_raw():
            if position + len(piece) > last:
                raise FormatError(f"{response.url} sends more bytes than were asked for: up to {last}")
            wanted = piece[max(span.start - position, 0) : max(span.end - position, 0)]
            if scanner is not None and file.tell() == scanner.position:
                scanner.update(wanted)
            file.write(wanted)
            position += len(piece)
            yield len(piece)
            if span.end <= position < last:
                return


def _check_length(response: httpx.Response, expected: int) -> None:
    found = response.headers.get("Content-Length", str(expected))
    if found != str(expected):
        raise FormatError(
            f"{response.url} announces {found} bytes instead of {expected}: something between this device and "
            "the server changes what is delivered"
        )


def _check_content_range(response: httpx.Response, expected: str) -> None:
    """Raise `FormatError` for another range than `expected`; the total after it may be that of an object store."""
    found = response.headers.get("Content-Range")
    if found is None or found.partition("/")[0] != expected:
        raise FormatError(
            f"{response.url} answered the range {found!r} instead of {expected!r}: something between this "
            "device and the server mishandles ranges"
        )


def _refuse(response: httpx.Response) -> None:
    """Raise what the server's problem+json (RFC 9457) says, or its status line when it says nothing."""
    status, media_type = response.status_code, response.headers.get("Content-Type", "")
    body = small_body(response) if media_type.startswith(problem_details.MEDIA_TYPE) else b""
    problem = problem_details.parse_problem(media_type, body)
    text = f"{problem.detail or response.reason_phrase or 'no reason given'} (HTTP {status})"
    if response.history and problem.detail is None:  # an object store: the next URL for it may work
        raise UnreachableError(
            f"{response.url.host}, where the server sent this device to, refused: {text}",
            _retry_after(response),
        )
    if status >= 500:
        raise UnreachableError(f"the server failed: {text}; try again later", _retry_after(response))
    raise RefusedError(f"the server refused: {text}", status, problem.code, _retry_after(response))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of the Retry-After field (RFC 9110, section 10.2.3); its other form, a date, is not used."""
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() else None


def small_body(response: httpx.Response) -> bytes:
    """The whole body of an answer that is to be held in memory; `FormatError` when it is far too long for that."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > SMALL_BYTES:
            raise FormatError(
                f"{response.url} sends more than {SMALL_BYTES} bytes where a small answer is expected"
            )
    return bytes(body)
