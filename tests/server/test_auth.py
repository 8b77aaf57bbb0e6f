"""API keys: who gets in, who may do what, and what is kept of a secret."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from server.access.authenticate import _address
from server.access.tokens import check_key, create_key, ensure_admin_key, present
from server.app import create_app
from server.services import Services
from server.settings import Settings
from server.store import keys
from server.store.db import Database
from server.store.tables import ApiKey, utcnow
from tests.server.conftest import Api, TestClient, bearer, sqlite_only

SECRET = b"s" * 32


def test_a_key_is_checked_and_its_secret_is_not_kept(db: Database) -> None:
    with db.begin() as session:
        row, token = create_key(session, SECRET, name="a", scopes=["jobs:read"])
        other, _ = create_key(session, SECRET, name="b", scopes=["admin"])
    prefix, key_id, secret = token.split("_", 2)
    assert (prefix, key_id) == ("mdc", row.id)
    assert len(secret) >= 22  # 128 bits in base64
    assert secret not in repr([getattr(row, name) for name in ApiKey.__mapper__.column_attrs.keys()])  # noqa: SIM118
    wrong = [
        "",
        "mdc",
        "mdc__",
        f"mdc_{row.id}_",
        f"mdc_{row.id}_{secret[:-1]}",
        f"mdc_{other.id}_{secret}",
        f"mdc_unknown_{secret}",
        f"MDC_{row.id}_{secret}",
        f"mdc_{row.id}_{secret}\N{SNOWMAN}",
    ]
    with db.read() as session:
        found = check_key(session, present(SECRET, token))
        assert found is not None
        assert found.id == row.id
        assert check_key(session, present(b"t" * 32, token)) is None
        assert [check_key(session, present(SECRET, text)) for text in wrong] == [None] * len(wrong)


def test_revoked_and_expired_keys_do_not_work(db: Database) -> None:
    with db.begin() as session:
        revoked, revoked_token = create_key(session, SECRET, name="a", scopes=["admin"])
        expired, expired_token = create_key(
            session, SECRET, name="b", scopes=["admin"], expires_at=utcnow() + timedelta(hours=1)
        )
        assert {key.id for key in keys.admins(session)} == {revoked.id, expired.id}
        keys.revoke(session, revoked.id)
        past = utcnow() - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.id == expired.id).values(expires_at=past))
    with db.read() as session:
        assert check_key(session, present(SECRET, revoked_token)) is None
        assert check_key(session, present(SECRET, expired_token)) is None
        assert keys.admins(session) == []


@sqlite_only
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic YTpi"}, bearer("mdc_a_b")])
def test_without_a_key_that_works_the_answer_is_401(api: Api, headers: dict[str, str]) -> None:
    answer = api.client.get("/v1/jobs", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_keys_are_made_listed_and_revoked(api: Api) -> None:
    made = api.client.post("/v1/keys", json={"name": "phone", "scopes": ["subsets:read"]}, headers=api.admin)
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    token, key_id = made.json()["key"], made.json()["id"]
    assert api.client.get("/v1/sets", headers=bearer(token)).status_code == 200
    listed = api.client.get("/v1/keys", headers=api.admin)
    assert token not in listed.text
    row = next(row for row in listed.json()["data"] if row["id"] == key_id)
    assert row["last_used_at"] is not None
    for _ in range(2):
        assert api.client.delete(f"/v1/keys/{key_id}", headers=api.admin).status_code == 204
    assert api.client.get("/v1/sets", headers=bearer(token)).status_code == 401
    assert api.client.delete("/v1/keys/unknown", headers=api.admin).status_code == 404


def test_the_last_admin_key_stays(api: Api) -> None:
    rows = api.client.get("/v1/keys", headers=api.admin).json()["data"]
    own = api.admin["Authorization"].split("_")[1]
    for row in rows:
        if row["id"] != own:
            assert api.client.delete(f"/v1/keys/{row['id']}", headers=api.admin).status_code == 204
    answer = api.client.delete(f"/v1/keys/{own}", headers=api.admin)
    assert (answer.status_code, answer.json()["code"]) == (409, "last-admin-key")


@sqlite_only
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a", "scopes": ["everything"]}, "scopes.0"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "", "scopes": ["admin"]}, "name"),
        ({"name": "a\0", "scopes": ["admin"]}, "name"),
        ({"name": "a", "scopes": ["admin"], "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "scopes": ["admin"], "expires_at": "2101-01-01T00:00:00"}, "expires_at"),
        ({"name": "a", "scopes": ["admin"], "id": "x"}, "id"),
    ],
)
def test_a_wrong_key_request_names_the_field(api: Api, body: dict[str, object], field: str) -> None:
    answer = api.client.post("/v1/keys", json=body, headers=api.admin)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@sqlite_only
def test_the_embedded_mode_makes_its_first_admin_key_once(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(secret=None)
    file = settings.data_dir / "admin.key"
    for _ in range(2):
        app = create_app(settings)
        services: Services = app.state.services
        with TestClient(app) as client:
            token = file.read_text().strip()
            assert client.get("/v1/keys", headers=bearer(token)).status_code == 200
            with services.db.read() as session:
                assert len(keys.admins(session)) == 1
    for path in (file, settings.data_dir / "secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_server_gets_no_key_by_itself(
    make_settings: Callable[..., Settings], db: Database
) -> None:
    settings = make_settings()
    with db.begin() as session:
        ensure_admin_key(settings, session)
        assert keys.admins(session) == []
    assert not (settings.data_dir / "admin.key").exists()


@sqlite_only
@pytest.mark.parametrize("headers", [{}, bearer("mdc_0123456789abcdef_x")])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/keys", "/v1/sets/toy/plans", "/v1/datasets"])
def test_the_body_of_who_has_no_key_is_not_read(api: Api, path: str, headers: dict[str, str]) -> None:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    assert api.client.portal is not None
    app: Any = api.client.app
    api.client.portal.call(app, scope, receive, send)
    assert sent[0]["status"] == 401


def test_guesses_from_one_subscriber_count_together() -> None:
    """Of IPv6 everyone has 2⁶⁴ addresses."""
    clients = ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1", "fe80::1%eth0", "192.0.2.1", "192.0.2.2"]
    assert [_address({"client": (client, 1)}) for client in clients] == [
        *("2001:db8::/64", "2001:db8::/64", "2001:db8:0:1::/64", "fe80::/64", "192.0.2.1", "192.0.2.2")
    ]
