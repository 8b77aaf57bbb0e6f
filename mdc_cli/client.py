"""The commands' HTTP client: where the service is, with which key, and what its refusals say."""

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
    """Nobody answers at the URL."""


class Service:
    """A service at a URL."""

    def __init__(self, url: str, key: str | None) -> None:
        """`key`: an API key; None takes the admin key of the data folder on this machine, if there is one."""
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key or _local_key(self.url)}"},
            timeout=httpx.Timeout(30, write=None),
        )

    def call(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of an answer.

        Raises:
            MdcError: the service cannot be reached, or refuses; the message is the service's own.
        """
        response = self.send(method, path, **request)
        try:
            return response.json()
        except ValueError as error:
            raise MdcError(f"{self.url} does not speak this API: check the address") from error

    def fetch(self, path: str) -> bytes:
        """The bytes of an answer to GET; raises as `call` does."""
        return self.send("GET", path).content

    def events(self, path: str, after: str) -> Iterator[ServerSentEvent]:
        """Server-sent events that follow the one with id `after`, as they come; raises as `call` does."""
        headers = {"Last-Event-ID": after} if after else {}
        try:
            with connect_sse(self._http, "GET", path, headers=headers) as source:
                if source.response.is_error:
                    source.response.read()
                    raise MdcError(_refusal(source.response))
                if source.response.status_code != httpx.codes.NO_CONTENT:  # nothing will ever follow
                    yield from (event for event in source.iter_sse() if event.data)
        except SSEError as error:
            raise MdcError(f"{self.url} has no stream at {path}: {error}") from error
        except httpx.HTTPError as error:
            raise UnreachableError(f"the stream from {self.url} has broken off ({error})") from error

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """An answer of any kind; raises as `call` does."""
        try:
            response = self._http.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(
                f"cannot reach {self.url} ({error}): start it with 'mdc up', or name it with --url"
            ) from error
        if response.is_error:
            raise MdcError(_refusal(response))
        return response

    def pages(self, path: str, limit: int, **query: Any) -> list[Any]:
        """Up to `limit` entries of a list."""
        found: list[Any] = []
        after: dict[str, str] = {}
        while len(found) < limit:
            wanted = {"limit": min(100, limit - len(found))}
            page = self.call("GET", path, params=query | wanted | after)
            found += page["data"]
            if not page["has_more"]:
                break
            after = {"after": page["next_cursor"]}
        return found


def _local_key(url: str) -> str:
    """The admin key that the embedded mode wrote, when this user may read it; no other host ever gets it."""
    if not is_here(url):
        raise MdcError(f"no API key for {url}: give --key, or set MDC_KEY")
    if (key := local_key(url)) is None:
        raise MdcError(
            "no API key: give --key, set MDC_KEY, or work where 'mdc up' was started "
            f"(there is no {key_file()} that can be read)"
        )
    return key


def _refusal(response: httpx.Response) -> str:
    """What the response says, every invalid field on a line of its own."""
    problem = parse_problem(response.headers.get("Content-Type", ""), response.content)
    unexplained = f"the service answered {response.status_code} {response.reason_phrase}"
    return "\n  ".join(problem.fields or [problem.detail or unexplained])
