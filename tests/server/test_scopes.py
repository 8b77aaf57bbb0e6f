"""Who may do what: every route, with every kind of key, answers as the table says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import update

from server.access.callers import SCOPES
from server.access.tokens import create_key
from server.settings import Settings
from server.store import keys, sets
from server.store.tables import ApiKey, utcnow
from tests.server.archives import arrays
from tests.server.conftest import Api, bearer, serving, sqlite_only
from tests.server.test_api_jobs import DIGITS
from tests.server.toyset import publish


@dataclass(frozen=True)
class Rule:
    """The scope that a route asks for, and its answers to keys that have it: the owner's, another's, an admin's."""

    scope: str | None
    owner: int
    other: int
    admin: int
    body: dict[str, Any] | bytes | None = None


OPEN = Rule(None, 200, 200, 200)
READ_SET = Rule("subsets:read", 200, 200, 200)  # sets are for every reader
MINE = {**DIGITS, "name": "mine"}
TABLE: dict[tuple[str, str], Rule] = {
    ("POST", "/v1/datasets"): Rule("jobs:write", 200, 201, 201, arrays()),
    ("GET", "/v1/datasets"): Rule("jobs:read", 200, 200, 200),
    ("GET", "/v1/datasets/{dataset_id}"): Rule("jobs:read", 200, 404, 200),
    ("DELETE", "/v1/datasets/{dataset_id}"): Rule("jobs:write", 204, 404, 404),
    ("POST", "/v1/jobs"): Rule("jobs:write", 202, 409, 409, MINE),
    ("GET", "/v1/jobs"): Rule("jobs:read", 200, 200, 200),
    ("GET", "/v1/jobs/{job_id}"): Rule("jobs:read", 200, 404, 200),
    ("POST", "/v1/jobs/{job_id}/cancel"): Rule("jobs:write", 202, 404, 202),
    ("GET", "/v1/jobs/{job_id}/events"): Rule("jobs:read", 200, 404, 200),
    ("GET", "/v1/jobs/{job_id}/events/stream"): Rule("jobs:read", 200, 404, 200),
    **{
        ("GET", f"/docs{rest}"): OPEN
        for rest in ("", "/start.js", "/swagger-ui-bundle.js", "/swagger-ui.css")
    },
    ("GET", "/v1/sets"): READ_SET,
    ("GET", "/v1/sets/{name}"): READ_SET,
    ("DELETE", "/v1/sets/{name}"): Rule("jobs:write", 204, 403, 204),
    ("GET", "/v1/sets/{name}/manifest"): READ_SET,
    ("GET", "/v1/sets/{name}/preview.png"): READ_SET,
    ("HEAD", "/subsets/{k}"): READ_SET,
    ("GET", "/subsets/{k}"): READ_SET,
    ("HEAD", "/v1/sets/{name}/subsets/{k}"): READ_SET,
    ("GET", "/v1/sets/{name}/subsets/{k}"): READ_SET,
    ("HEAD", "/v1/sets/{name}/ranks/{r}"): READ_SET,
    ("GET", "/v1/sets/{name}/ranks/{r}"): READ_SET,
    ("POST", "/v1/sets/{name}/plans"): Rule("subsets:read", 200, 200, 200, {}),
    ("GET", "/v1/keyset"): OPEN,
    ("POST", "/v1/keys"): Rule("admin", 403, 201, 201, {"name": "made", "scopes": ["jobs:read"]}),
    ("GET", "/v1/keys"): Rule("admin", 403, 200, 200),
    ("DELETE", "/v1/keys/{key_id}"): Rule("admin", 403, 204, 204),
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/metrics"): OPEN,
}
OWNED = ["jobs:read", "jobs:write", "subsets:read"]
"""The scopes of the owner's key."""


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Method and template of every route of ours; those that describe the API are FastAPI's."""
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute):
            assert route.path is not None
            yield from ((method, route.path) for method in route.methods or ())


@dataclass
class World:
    """The things of one owner, and requests about them."""

    api: Api
    owner: dict[str, str]
    dataset: str = ""

    def ask(self, method: str, path: str, headers: dict[str, str]) -> int:
        """The status of a request that is right but perhaps for its key; what can be used up is new each time."""
        body = TABLE[method, path].body
        request: dict[str, Any] = {"json": body} if isinstance(body, dict) else {}
        if isinstance(body, bytes):
            request = {"content": body}
            headers = {**headers, "Content-Type": "application/x-npz"}
        things = self.things(path)
        url = path.format(**things) + (f"?set={things['name']}" if path == "/subsets/{k}" else "")
        return int(self.api.client.request(method, url, headers=headers, **request).status_code)

    def things(self, path: str) -> dict[str, str]:
        """Values for the template."""
        things = {"k": "1", "r": "1", "dataset_id": self.dataset}
        if "set" in path:
            publish(self.api.services, key_id(self.owner), "theirs", 1)
            with self.api.services.db.read() as session:
                things["name"] = f"theirs@{sets.latest_version(session, 'theirs')}"
        if "{job_id}" in path:
            things["job_id"] = self.submitted()
            if path.endswith("/stream"):  # that of a job which waits would not end
                self.api.client.post(f"/v1/jobs/{things['job_id']}/cancel", headers=self.owner)
        if "{key_id}" in path:
            things["key_id"] = key_id(self.api.key("jobs:read"))
        return things

    def submitted(self) -> str:
        answer = self.api.client.post("/v1/jobs", json=MINE, headers=self.owner)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id


def key_id(headers: dict[str, str]) -> str:
    return headers["Authorization"].split("_")[1]


@pytest.fixture
def world(make_settings: Callable[..., Settings]) -> Iterator[World]:
    with serving(make_settings(refusal_rate="")) as api:
        world = World(api, api.key(*OWNED))
        upload = {**world.owner, "Content-Type": "application/x-npz"}
        world.dataset = api.client.post("/v1/datasets", content=arrays(), headers=upload).json()["id"]
        world.submitted()  # so that the name is the owner's
        yield world


def refused_keys(api: Api) -> dict[str, dict[str, str]]:
    """Headers that let nobody in, whatever the scope."""
    revoked, expired = api.key(*SCOPES), api.key(*SCOPES)
    with api.services.db.begin() as session:
        keys.revoke(session, key_id(revoked))
        past = utcnow() - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.id == key_id(expired)).values(expires_at=past))
        _, foreign = create_key(session, b"another server's secret", name="foreign", scopes=["admin"])
    return {"none": {}, "revoked": revoked, "expired": expired, "foreign": bearer(foreign)}


@sqlite_only
def test_every_route_has_its_row(api: Api) -> None:
    assert set(routes(api.client.app)) == set(TABLE)


@sqlite_only
def test_who_may_do_what(world: World) -> None:
    refused = refused_keys(world.api)
    others = {scope: world.api.key(scope) for scope in SCOPES}
    expected: dict[tuple[str, str, str], int] = {}
    found: dict[tuple[str, str, str], int] = {}
    for (method, path), rule in TABLE.items():
        for who, headers in refused.items():
            expected[method, path, who] = 200 if rule.scope is None else 401
            found[method, path, who] = world.ask(method, path, headers)
        expected[method, path, "owner"] = rule.owner
        found[method, path, "owner"] = world.ask(method, path, world.owner)
        for scope, headers in others.items():
            allowed = rule.other if rule.scope in (None, scope) else 403
            expected[method, path, scope] = rule.admin if scope == "admin" else allowed
            found[method, path, scope] = world.ask(method, path, headers)
    assert found == expected
