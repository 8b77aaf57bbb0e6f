"""The conversation with the server: requests, refusals in words, closed byte ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import httpx

from mdc_core.errors import ConfigError, FormatError
from mdc_device.errors import RefusedError, UnreachableError

TIMEOUT = httpx.Timeout(30.0, connect=10.0)


def connect(url: str, key: str | None) -> httpx.Client:
    """A connection to the server at `url`, to be closed by the caller; `key` is the API key."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the server's URL is {url!r}: it should begin with http:// or https://")
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise ConfigError("the key is empty or has characters that no key has: copy it again")
    # A proxy that compresses would break ranges and digests.
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, follow_redirects=True)
    except httpx.InvalidURL as error:
        raise ConfigError(f"the server's URL is {url!r}: {error}") from None


@contextmanager
def answer(
    http: httpx.Client,
    path: str,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[httpx.Response]:
    """A successful answer to GET, its body still to be read.

    Raises `RefusedError` for 4xx and `UnreachableError` for 5xx and broken connections, also when it breaks
    while the body is being read.
    """
    try:
        with http.stream("GET", path, params=params, headers=headers) as response:
            if not response.is_success:
                _refuse(response)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise FormatError(
                    f"{response.url} came with Content-Encoding {response.headers['Content-Encoding']!r}: "
                    "something between this device and the server changes what is delivered"
                )
            yield response
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise UnreachableError(f"no complete answer from {http.base_url}: {reason}") from error
    except httpx.InvalidURL as error:
        raise ConfigError(f"{path!r} makes no valid address: {error}") from None


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of one version of a resource."""

    path: str
    """Of the resource, relative to the server's URL."""
    params: Mapping[str, str]
    """Query fields."""
    etag: str
    """The only acceptable version: the sha256 of the whole resource."""
    start: int
    """First byte."""
    end: int
    """One past the last byte."""
    size: int
    """Bytes of the whole resource."""


def receive(http: httpx.Client, span: Span, file: BinaryIO) -> Iterator[int]:
    """Write the bytes of `span` to the same place of `file`, yielding the count of every piece.

    A server that sends the whole instead of the range is taken at its word: everything is written anew, from
    byte 0. `FormatError` when the answer is of another version or range, or longer than it should be.
    """
    position, end = span.start, span.end
    headers = {"If-Match": f'"{span.etag}"'}
    if (span.start, span.end) != (0, span.size):
        headers["Range"] = f"bytes={span.start}-{span.end - 1}"
    with answer(http, span.path, span.params, headers) as response:
        found = response.headers.get("ETag", "").removeprefix("W/").strip('"')
        if found and found != span.etag:
            raise FormatError(
                f"{response.url} is version {found}, but the manifest describes {span.etag}: the set was "
                "published again meanwhile, run the same command again"
            )
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            _check_content_range(response, f"bytes {span.start}-{span.end - 1}/{span.size}")
        else:
            position, end = 0, span.size
        file.seek(position)
        for piece in response.iter_raw():
            position += len(piece)
            if position > end:
                raise FormatError(f"{response.url} sends more bytes than were asked for: up to {end}")
            file.write(piece)
            yield len(piece)


def _check_content_range(response: httpx.Response, expected: str) -> None:
    found = response.headers.get("Content-Range")
    if found != expected:
        raise FormatError(
            f"{response.url} answered the range {found!r} instead of {expected!r}: something between this "
            "device and the server mishandles ranges"
        )


def _refuse(response: httpx.Response) -> None:
    """Raise what the server's problem+json (RFC 9457) says, or its status line when it says nothing."""
    status, code, detail = response.status_code, None, None
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        problem = _problem(response)
        code, detail = problem.get("code"), problem.get("detail") or problem.get("title")
    text = f"{detail or response.reason_phrase or 'no reason given'} (HTTP {status})"
    if status >= 500:
        raise UnreachableError(f"the server failed: {text}; try again later")
    if status == httpx.codes.PRECONDITION_FAILED:
        raise FormatError(f"the set was published again meanwhile, run the same command again: {text}")
    raise RefusedError(f"the server refused: {text}", status, code if isinstance(code, str) else None)


def _problem(response: httpx.Response) -> dict[str, object]:
    try:
        response.read()
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
