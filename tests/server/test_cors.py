"""Pages of the origins that are allowed read what devices read, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.app import create_app
from server.settings import Settings
from tests.server.conftest import TestClient, serving, sqlite_only
from tests.server.toyset import publish

pytestmark = sqlite_only
ORIGIN = "https://page.test"
EXPOSED = {"Content-Range", "ETag", "Repr-Digest", "Content-Location", "MDC-Epochs", "MDC-Verdict"}


@pytest.fixture
def client(make_settings: Callable[..., Settings]) -> Iterator[Any]:
    with TestClient(create_app(make_settings(cors_origins=(ORIGIN,)))) as client:
        yield client


def preflight(client: Any, path: str, method: str, origin: str = ORIGIN) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,range",
    }
    return client.options(path, headers=headers)


def test_an_answer_shows_the_page_what_it_needs(client: Any) -> None:
    for path in ("/subsets/1?set=x", "/v1/sets/x/manifest", "/v1/keyset"):
        answer = client.get(path, headers={"Origin": ORIGIN})
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert set(answer.headers["Access-Control-Expose-Headers"].split(", ")) == EXPOSED
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert answer.headers["Vary"].split(", ").count("Origin") == 1
        for origin in ({"Origin": "https://other.test"}, {}):
            other = client.get(path, headers=origin)
            assert "Access-Control-Allow-Origin" not in other.headers
            assert other.headers["Vary"] == answer.headers["Vary"], "a cache keeps them apart"


@pytest.mark.parametrize("origins", [(ORIGIN,), ("*",), ()])
def test_a_cache_gives_no_answer_to_pages_of_other_origins(
    make_settings: Callable[..., Settings], origins: tuple[str, ...]
) -> None:
    """Whichever way an answer takes."""
    with serving(make_settings(cors_origins=origins)) as api:
        publish(api.services, api.admin["Authorization"].split("_")[1], "toy", 1)
        for url in (
            "/v1/sets/toy@1/subsets/1",
            "/subsets/1?set=toy@1",
            "/v1/sets/toy@1/ranks/1",
            "/v1/sets/toy",
        ):
            for _ in range(2):  # the second time from memory
                answer = api.client.get(url, headers=api.admin)
                assert answer.status_code == 200
                assert answer.headers.get("Vary") == ("Origin" if origins else None)
        assert api.services.fast_path.answers >= 3


def test_what_a_page_may_send(client: Any) -> None:
    for path, method, allowed in (
        ("/subsets/1", "GET", True),
        ("/subsets/1", "HEAD", True),
        ("/v1/sets/x/plans", "POST", True),
        ("/v1/sets/x@1", "DELETE", False),
        ("/v1/jobs", "POST", False),
        ("/v1/keys", "GET", False),
    ):
        answer = preflight(client, path, method)
        assert (answer.status_code == 200) == allowed, (path, method)
    assert preflight(client, "/subsets/1", "GET", "https://other.test").status_code == 400


def test_no_origin_is_allowed_unless_the_settings_say_so(make_settings: Callable[..., Settings]) -> None:
    with TestClient(create_app(make_settings())) as client:
        answer = client.get("/v1/keyset", headers={"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control")]
