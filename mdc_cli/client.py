"""The commands' HTTP client: where the service is, with which key, and what its refusals say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from mdc_core.errors import MdcError

DEFAULT_URL = "http://127.0.0.1:8000"


class Service:
    """A service at a URL."""

    def __init__(self, url: str, key: str | None) -> None:
        """`key`: an API key; None takes the admin key of the data folder on this machine, if there is one."""
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key or _local_key()}"},
            timeout=httpx.Timeout(30, write=None),
        )

    def call(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of an answer.

        Raises:
            MdcError: the service cannot be reached, or refuses; the message is the service's own.
        """
        return self._send(method, path, **request).json()

    def fetch(self, path: str) -> bytes:
        """The bytes of an answer to GET; raises as `call` does."""
        return self._send("GET", path).content

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise MdcError(
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


def _local_key() -> str:
    """The admin key that the embedded mode wrote, when this user may read it."""
    path = Path(os.environ.get("MDC_DATA_DIR", "mdc-data")) / "admin.key"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise MdcError(
            f"no API key: give --key, set MDC_KEY, or work where 'mdc up' was started (there is no {path})"
        ) from error


def _refusal(response: httpx.Response) -> str:
    """What a problem+json document says, field by field."""
    try:
        problem = response.json()
    except ValueError:
        return f"the service answered {response.status_code} {response.reason_phrase}"
    details = [problem.get("detail") or problem.get("title", "")]
    details += [
        f"{error.get('field', '')}: {error.get('detail', '')}" for error in problem.get("errors") or ()
    ]
    return "\n  ".join(details)
