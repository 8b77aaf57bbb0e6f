"""The commands' HTTP client: it finds the service and the key, and turns refusals into messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, SSEError, connect_sse

from mdc_core.delivery.local_key import is_here, key_file, local_key
from mdc_core.delivery.problem_details import parse_problem
from mdc_core.errors import MdcError

DEFAULT_URL = "http://127.0.0.1:8000"


class UnreachableError(MdcError):
    """The service at the URL does not respond."""


class Service:
    """A service at a URL."""

    def __init__(self, url: str, key: str | None) -> None:
        """`key` is an API key; None takes the admin key from this machine's data folder, if there is one."""
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key or _local_key(self.url)}"},
            timeout=httpx.Timeout(30, write=None),
        )

    def call(self, method: str, path: str, **request: Any) -> Any:
        """Send a request; returns the JSON of the response.

        Raises:
            MdcError: the service cannot be reached, or refuses (with the service's own message).
        """
        response = self.send(method, path, **request)
        try:
            return response.json()
        except ValueError as error:
            raise MdcError(f"{self.url} is not this API: check the URL") from error

    def fetch(self, path: str) -> bytes:
        """GET the bytes at `path`; raises like `call`."""
        return self.send("GET", path).content

    def events(self, path: str, after: str) -> Iterator[ServerSentEvent]:
        """Yield server-sent events as they arrive, from the one after the id `after`; raises like `call`."""
        headers = {"Last-Event-ID": after} if after else {}
        try:
            with connect_sse(self._http, "GET", path, headers=headers) as source:
                if source.response.is_error:
                    source.response.read()
                    raise MdcError(_refusal(source.response))
                if source.response.status_code != httpx.codes.NO_CONTENT:  # no events will follow
                    yield from (event for event in source.iter_sse() if event.data)
        except SSEError as error:
            raise MdcError(f"{self.url} has no event stream at {path} ({error}): check the URL") from error
        except httpx.HTTPError as error:
            raise UnreachableError(f"the event stream from {self.url} broke ({error}): try again") from error

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request; returns the response. Raises like `call`."""
        try:
            response = self._http.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(
                f"cannot reach {self.url} ({error}): start the service with 'mdc up', or give its URL with --url"
            ) from error
        if response.is_error:
            raise MdcError(_refusal(response))
        return response

    def pages(self, path: str, limit: int, **query: Any) -> list[Any]:
        """Up to `limit` entries of a paged list."""
        entries: list[Any] = []
        after: dict[str, str] = {}
        while len(entries) < limit:
            size = {"limit": min(100, limit - len(entries))}
            page = self.call("GET", path, params=query | size | after)
            entries += page["data"]
            if not page["has_more"]:
                break
            after = {"after": page["next_cursor"]}
        return entries


def _local_key(url: str) -> str:
    """The admin key that `mdc up` wrote, if this user may read it; it is never sent to another host."""
    if not is_here(url):
        raise MdcError(f"no API key for {url}: give --key, or set MDC_KEY")
    if (key := local_key(url)) is None:
        raise MdcError(
            f"no API key ({key_file()} cannot be read): give --key, set MDC_KEY, or run this in the folder where "
            "'mdc up' was started"
        )
    return key


def _refusal(response: httpx.Response) -> str:
    """What the response says, every invalid field on a line of its own."""
    problem = parse_problem(response.headers.get("Content-Type", ""), response.content)
    unexplained = f"the service answered {response.status_code} {response.reason_phrase}"
    return "\n  ".join(problem.fields or [problem.detail or unexplained])
