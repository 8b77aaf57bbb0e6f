"""HTTP requests to the server: errors as messages, byte ranges, small bodies."""

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
"""Longest timeout; sockets do not accept arbitrarily many seconds."""
SMALL_BYTES = 16 << 20
"""Larger than any manifest, key set or problem."""


@dataclass(frozen=True)
class Access:
    """How this device connects to the server."""

    key: str | None = None
    """API key."""
    timeout_s: float = 30.0
    """Seconds without data after which a connection counts as broken."""
    retries: int = 4
    """Retries after a failure; a retry that receives data does not count."""
    keyset: Mapping[str, Any] | None = None
    """The only keys to accept, a JWKS; None: the pinned keys, or on first use the server's."""
    unsigned: bool = False
    """Whether to accept a server that does not sign."""

    def __post_init__(self) -> None:
        if self.key is not None and not (self.key and self.key.isascii() and self.key.isprintable()):
            raise ConfigError("the key is empty or has characters that no key has: copy it again")
        if not 0 < self.timeout_s <= LONGEST_S:  # NaN fails the comparison too
            raise ConfigError(
                f"timeout_s is {self.timeout_s}: give a number of seconds above 0, {LONGEST_S:g} at most"
            )
        if self.retries < 0:
            raise ConfigError(f"retries is {self.retries}: give a whole number, 0 or more")


def connect(url: str, access: Access) -> httpx.Client:
    """Open a connection to the server at `url`; the caller closes it."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the server's URL is {url!r}: it must begin with http:// or https://")
    key = access.key
    # Compression by a proxy would break ranges and digests.
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
    """The trusted certificate authorities; cached, because reading them takes longer than a small request."""
    return httpx.create_ssl_context()


@contextmanager
def answer(
    http: httpx.Client,
    path: str,
    headers: Mapping[str, str] | None = None,
) -> Iterator[httpx.Response]:
    """A successful response to GET; the caller reads its body.

    Raises `RefusedError` for 4xx, and `UnreachableError` for 5xx and for connections that break, even while the body
    is being read.
    """
    try:
        with http.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                _refuse(response)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise FormatError(
                    f"{response.url} arrived with Content-Encoding {response.headers['Content-Encoding']!r}: "
                    "a proxy between this device and the server changes responses; try another connection"
                )
            yield response
    except httpx.HTTPError as error:
        if (refused := _certificate_fault(error)) is not None:
            raise FormatError(
                f"the certificate of {_asked(error, http)} cannot be trusted ({refused}): check the URL and this "
                "device's clock; if the server uses your own certificate authority, set SSL_CERT_FILE to its "
                "certificate"
            ) from error
        reason = str(error) or type(error).__name__
        raise UnreachableError(f"no complete response from {http.base_url}: {reason}") from error
    except httpx.InvalidURL as error:
        raise ConfigError(f"{path!r} makes no valid URL ({error}): check the name of the set") from None


def _asked(error: httpx.HTTPError, http: httpx.Client) -> str:
    """The host that was contacted; after a redirect, not the server itself."""
    try:
        return error.request.url.host
    except RuntimeError:  # httpx knows none
        return http.base_url.host


def _certificate_fault(error: BaseException | None) -> str | None:
    """Why certificate verification failed; None if the error is another one."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of a resource whose URL names its version."""

    path: str
    """Path below the server's URL, with the query."""
    etag: str
    """The ETag that the server must send: the sha256 of the whole resource."""
    start: int
    """First byte."""
    end: int
    """One past the last byte."""
    size: int
    """Bytes of the whole resource."""


def receive(http: httpx.Client, span: Span, file: BinaryIO, scanner: Scanner | None = None) -> Iterator[int]:
    """Write the bytes of `span` to the same position of `file`, and yield the size of every piece.

    Bytes that continue where the `scanner` stands are fed to it.

    The server may redirect to an object store, which has the same bytes at the same position of a longer object, but
    its own entity tags. So no precondition is sent; the digests decide whether the bytes are correct.

    If the server sends the whole resource instead of the range, only the bytes of `span` are written. Raises
    `FormatError` if the response is of another version or range, or too long. A response that ends early without an
    error just yields less.
    """
    whole = (span.start, span.end) == (0, span.size)
    headers = {} if whole else {"Range": f"bytes={span.start}-{span.end - 1}"}
    with answer(http, span.path, headers) as response:
        etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
        if etag and etag != span.etag and not response.history:
            raise FormatError(
                f"{response.url} has the ETag {etag}, but the manifest describes {span.etag}: a cache between this "
                "device and the server keeps old copies; try again later"
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
                raise FormatError(
                    f"{response.url} sends more than the {last} bytes requested: tell the server's operator"
                )
            ours = piece[max(span.start - position, 0) : max(span.end - position, 0)]
            if scanner is not None and file.tell() == scanner.position:
                scanner.update(ours)
            file.write(ours)
            position += len(piece)
            yield len(piece)
            if span.end <= position < last:
                return


def _check_length(response: httpx.Response, expected: int) -> None:
    length = response.headers.get("Content-Length", str(expected))
    if length != str(expected):
        raise FormatError(
            f"{response.url} announces {length} bytes instead of {expected}: a proxy between this device and the "
            "server changes responses; try another connection"
        )


def _check_content_range(response: httpx.Response, expected: str) -> None:
    """Raise `FormatError` unless the range is `expected`; the total after it may be an object store's."""
    actual = response.headers.get("Content-Range")
    if actual is None or actual.partition("/")[0] != expected:
        raise FormatError(
            f"{response.url} returned the range {actual!r} instead of {expected!r}: a proxy between this device and "
            "the server mishandles ranges; try another connection"
        )


def _refuse(response: httpx.Response) -> None:
    """Raise an error with the detail of the server's problem+json (RFC 9457), or else its status line."""
    status, media_type = response.status_code, response.headers.get("Content-Type", "")
    body = small_body(response) if media_type.startswith(problem_details.MEDIA_TYPE) else b""
    problem = problem_details.parse_problem(media_type, body)
    text = f"{problem.detail or response.reason_phrase or 'no reason given'} (HTTP {status})"
    if response.history and problem.detail is None:  # an object store: a new URL for it may work
        raise UnreachableError(
            f"{response.url.host}, to which the server redirected, refused: {text}",
            _retry_after(response),
        )
    if status >= 500:
        raise UnreachableError(f"the server failed: {text}; try again later", _retry_after(response))
    raise RefusedError(f"the server refused: {text}", status, problem.code, _retry_after(response))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds in the Retry-After field (RFC 9110, section 10.2.3); its date form is ignored."""
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() else None


def small_body(response: httpx.Response) -> bytes:
    """Read a whole body into memory. Raises `FormatError` if it is longer than any small response."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > SMALL_BYTES:
            raise FormatError(
                f"{response.url} sends more than {SMALL_BYTES} bytes where a small response is expected: check the URL"
            )
    return bytes(body)
