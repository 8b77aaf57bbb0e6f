"""Manifests over HTTP: dated, signed, and the same for an hour."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdc_core.delivery import rankmajor, signing
from mdc_core.delivery.manifest import parse_manifest
from server.delivery.manifests import JOSE, expiry, write_manifest
from tests.conftest import SIGNING_KEY
from tests.server.conftest import Published, sqlite_only
from tests.server.toyset import INFO, RANDOM

URL = "/v1/sets/toy@1/manifest"


def test_the_manifest(toy: Published) -> None:
    answer = toy.get(URL)
    manifest = parse_manifest(answer.json())
    assert (manifest.name, manifest.version, manifest.info) == ("toy", 1, INFO)
    assert manifest.digests == rankmajor.digests(toy.objects[0], INFO)
    assert answer.headers["ETag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["Content-Type"] == "application/json"
    # Both databases keep the order of the fields.
    assert next(iter(json.loads(answer.content))) == "manifest_version"
    assert toy.get("/v1/sets/toy/manifest").headers["Content-Location"] == "/v1/sets/toy@2/manifest"


@sqlite_only
def test_the_signed_manifest_is_of_the_same_bytes(toy: Published) -> None:
    plain, signed = toy.get(URL), toy.get(URL, Accept=JOSE)
    assert signed.headers["Content-Type"] == JOSE
    assert plain.headers["Vary"] == signed.headers["Vary"] == "Accept"
    assert plain.headers["ETag"] != signed.headers["ETag"]
    keyset = toy.api.client.get("/v1/keyset")
    assert keyset.headers["Cache-Control"] == "public, max-age=300"
    assert signing.verify(signed.text, keyset.json()) == plain.content
    assert keyset.json() == signing.jwks([SIGNING_KEY.public])


@sqlite_only
def test_the_signed_manifest_carries_the_verdicts(mixed: Published) -> None:
    """Derived from what is stored, so that sets of earlier releases have them too."""
    text = signing.verify(
        mixed.get("/v1/sets/mixed@1/manifest", Accept=JOSE).text, signing.jwks([SIGNING_KEY.public])
    )
    rows = json.loads(text)["accuracy"]
    assert [row["verdict"] for row in rows] == ["better", "better", RANDOM, RANDOM]
    version, _ = mixed.api.services.catalog.find("mixed@1")
    stored = version.row.manifest["accuracy"]
    assert [{name: value for name, value in row.items() if name != "verdict"} for row in rows] == stored
    assert parse_manifest(json.loads(text)).accuracy == version.manifest.accuracy


@sqlite_only
@pytest.mark.parametrize("accept", ["*/*", JOSE])
def test_a_manifest_that_is_known_is_not_sent_again(toy: Published, accept: str) -> None:
    etag = toy.get(URL, Accept=accept).headers["ETag"]
    fresh = toy.get(URL, Accept=accept, If_None_Match=etag)
    assert (fresh.status_code, fresh.content) == (304, b"")
    assert fresh.headers["Vary"] == "Accept"
    other = JOSE if accept == "*/*" else "*/*"
    assert toy.get(URL, Accept=other, If_None_Match=etag).status_code == 200


@sqlite_only
def test_a_manifest_expires_after_the_days_of_the_settings(toy: Published) -> None:
    expires = parse_manifest(toy.get(URL).json()).expires
    assert expires is not None
    days = timedelta(toy.api.services.settings.manifest_days)
    assert days - timedelta(hours=1) <= expires - datetime.now(UTC) <= days


@given(st.datetimes(timezones=st.just(UTC), max_value=datetime(9990, 1, 1)), st.integers(1, 3650))
def test_the_expiry_is_the_same_for_an_hour(now: datetime, days: int) -> None:
    expires = expiry(now, days)
    assert timedelta(0) <= now + timedelta(days) - expires < timedelta(hours=1)
    assert expiry(now.replace(minute=0, second=0), days) == expiry(now.replace(minute=59), days) == expires
    document: dict[str, Any] = {"name": "x", "expires": None, "ipc": 1, "accuracy": []}
    written = [write_manifest(document, SIGNING_KEY, expires) for _ in range(2)]
    assert written[0] == written[1]
