"""Every error is a problem, also those that no route raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from server.app import create_app
from server.settings import Settings
from server.store.ids import to_cursor
from server.web.problems import MAX_BODY_BYTES, MAX_ERRORS, MAX_HEADER_BYTES
from tests.server.conftest import Api, TestClient, sqlite_only

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "errors", "request_id"}


def check(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The body of a problem of this kind."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body.keys() >= MEMBERS
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"].endswith(code)
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert body["detail"]
    return body


def test_unknown_paths_and_methods(api: Api) -> None:
    body = check(api.client.get("/v1/nothing"), 404, "not-found")
    assert body["instance"] == "/v1/nothing"
    answer = api.client.delete("/v1/jobs")
    check(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == "GET, POST"
    assert api.client.put("/subsets/1").headers["Allow"] == "GET, HEAD"
    # No redirect to where the caller's Host says.
    answer = api.client.get("/v1/jobs/", headers={"Host": "elsewhere.test"}, follow_redirects=False)
    check(answer, 404, "not-found")


@sqlite_only
@pytest.mark.parametrize(
    ("content", "media", "told"),
    [
        (b"{", "application/json", "not JSON"),
        (b"{}", "text/plain", "Content-Type: application/json"),
        (b"[]", "application/json", "object"),
        (b"\xff", "application/json", ""),
        (b"{}", "application/json", "dataset: Field required"),
    ],
)
def test_a_body_that_is_no_job(api: Api, content: bytes, media: str, told: str) -> None:
    answer = api.client.post("/v1/jobs", content=content, headers={**api.admin, "Content-Type": media})
    assert answer.status_code in (400, 422)
    body = check(answer, answer.status_code, answer.json()["code"])
    assert told in body["detail"]


@sqlite_only
def test_a_body_that_is_too_large_announced_or_not(api: Api) -> None:
    headers = {**api.admin, "Content-Type": "application/json"}
    content = b'{"dataset": "' + b"x" * MAX_BODY_BYTES + b'"}'
    check(api.client.post("/v1/jobs", content=content, headers=headers), 413, "body-too-large")

    def pieces() -> Any:
        yield from (content[:100], content[100:])

    check(api.client.post("/v1/jobs", content=pieces(), headers=headers), 413, "body-too-large")


@sqlite_only
def test_long_headers_and_paths_are_neither_served_nor_repeated(api: Api) -> None:
    check(api.client.get("/healthz", headers={"X-Odd": "x" * MAX_HEADER_BYTES}), 431, "headers-too-large")
    body = check(api.client.get(f"/{'x' * 10_000}"), 404, "not-found")
    assert len(body["instance"]) < 300
    assert len(body["detail"]) < 300
    check(api.client.get("/v1/nothing", headers={"Host": "["}), 404, "not-found")


@sqlite_only
@pytest.mark.parametrize(
    "body",
    [
        {f"field{number}": 1 for number in range(8000)},
        {"dataset": "digits", "condense": {f"field{number}": 1 for number in range(8000)}},
        {"dataset": "digits", "evaluate": {"sizes": [0] * 40_000}},
        {"dataset": "digits", "condense": {"subset_weights": [-1] * 30_000}},
        {"dataset": "digits", "condense": {"augment": ["x" * 50] * 2000}},
    ],
)
def test_errors_are_told_by_the_hundred(api: Api, body: dict[str, Any]) -> None:
    answer = api.client.post("/v1/jobs", json=body, headers=api.admin)
    assert answer.status_code == 422
    assert 1 <= len(answer.json()["errors"]) <= MAX_ERRORS
    assert len(answer.content) < 40_000


def test_odd_characters_find_nothing_and_break_nothing(api: Api) -> None:
    cursor = to_cursor("a\0b")
    for url, status in (
        ("/v1/jobs/%00", 400),
        ("/v1/jobs?owner=%00", 400),
        (f"/v1/jobs?after={cursor}", 422),
        ("/v1/jobs/%ED%A0%80", 404),
        ("/v1/jobs/%27%3B%20DROP", 404),
        ("/v1/sets/%2e%2e", 404),
        ("/v1/datasets/%F0%9F%90%88", 404),
        ("/subsets/1?set=%ff", 404),
    ):
        check(
            api.client.get(url, headers=api.admin),
            status,
            "not-found" if status == 404 else "invalid-request",
        )
    headers = {**api.admin, "Content-Type": "application/json"}
    lone_surrogate = rb'{"name": "\ud800", "scopes": ["admin"]}'
    answer = api.client.post("/v1/keys", content=lone_surrogate, headers=headers)
    assert check(answer, 422, "invalid-request")["errors"][0]["field"] == "name"


@pytest.mark.parametrize("number", ["1e999", "Infinity", "NaN"])
def test_numbers_are_finite(api: Api, number: str) -> None:
    headers = {**api.admin, "Content-Type": "application/json"}
    content = f'{{"dataset": "digits", "condense": {{"lr_base": {number}}}}}'
    answer = api.client.post("/v1/jobs", content=content, headers=headers)
    problem = check(answer, 422, "invalid-request")
    assert "lr_base" in problem["detail"]


@sqlite_only
def test_a_crash_says_nothing_of_the_inside(make_settings: Callable[..., Settings]) -> None:
    app = create_app(make_settings())

    @app.get("/crash")
    def crash() -> None:
        raise RuntimeError("the password is swordfish")

    with TestClient(app) as client:  # what it raised would cut the connection off
        answer = client.get("/crash", headers={"X-Request-ID": "abc-1"})
    assert check(answer, 500, "internal-error")["request_id"] == "abc-1"
    assert "swordfish" not in answer.text
    assert "RuntimeError" not in answer.text


def test_the_request_id_is_the_callers_if_it_is_harmless(api: Api) -> None:
    assert (
        api.client.get("/healthz", headers={"X-Request-ID": "a.B-1_2"}).headers["X-Request-ID"] == "a.B-1_2"
    )
    made = {
        api.client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"]
        for given in ("", "a b", "x" * 65, '"{}"')
    }
    assert len(made) == 4
    assert all(text.isalnum() for text in made)


def test_health(api: Api, make_settings: Callable[..., Settings]) -> None:
    assert api.client.get("/healthz").json() == {"status": "ok"}
    assert api.client.get("/readyz").json() == {"status": "ready"}
    unreachable = make_settings(database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")
    client = TestClient(create_app(unreachable), raise_server_exceptions=False)
    assert client.get("/healthz").status_code == 200
    check(client.get("/readyz"), 503, "not-ready")
