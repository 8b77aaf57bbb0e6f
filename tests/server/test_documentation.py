"""The page that describes the API loads nothing from elsewhere, and no page is without a policy."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest

from tests.server.conftest import Api, sqlite_only

pytestmark = sqlite_only


def test_the_page_and_all_that_it_loads_come_from_here(api: Api) -> None:
    page = api.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "docs/swagger-ui-bundle.js" in loaded
    for address in loaded:
        if address != "data:,":
            assert "//" not in address
            assert api.client.get(urljoin("/docs", address)).status_code == 200
    start = api.client.get("/docs/start.js")
    assert start.headers["Content-Type"].startswith("text/javascript")
    assert "//" not in start.text
    assert api.client.get("/openapi.json").status_code == 200


def test_the_policy_allows_this_server_and_no_script_in_the_page(api: Api) -> None:
    page = api.client.get("/docs")
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert re.findall(r"<script(?! src=)", page.text) == []
    assert page.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/", "/docs/", "/docs/none.js", "/docs/oauth2-redirect", "/redoc", "/docs/..%2fapp.py", "/v1/jobs"],
)
def test_there_is_no_other_page(api: Api, path: str) -> None:
    answer = api.client.get(path)
    assert answer.status_code in (401, 404)
    assert "html" not in answer.headers["Content-Type"]
