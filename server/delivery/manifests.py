"""Manifests for delivery: with an expiry, as JSON, and signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mdc_core.delivery.signing import PrivateKey, sign
from mdc_core.delivery.verdict import judged
from server.caching.lru import Lru
from server.store.tables import CondensedSet

JSON = "application/json"
JOSE = "application/jose"
CACHED_MANIFESTS = 64
"""Number of signed manifests to cache."""


@dataclass(frozen=True)
class Written:
    """One representation of a manifest."""

    media_type: str
    body: bytes
    etag: str

    @classmethod
    def of(cls, media_type: str, body: bytes) -> Written:
        """With the sha256 of the body as its entity tag."""
        return cls(media_type, body, f'"{hashlib.sha256(body).hexdigest()}"')


@dataclass(frozen=True)
class SignedManifest:
    """A manifest as JSON, and the compact JWS of exactly these bytes."""

    json: Written
    jose: Written


class Manifests:
    """Writes and signs manifests, and caches them for an hour."""

    def __init__(self, key: PrivateKey, days: int) -> None:
        """`key` signs; `days` after the hour of its writing a manifest expires."""
        self._key = key
        self._days = days
        self._kept: Lru[tuple[str, int, datetime], SignedManifest] = Lru(CACHED_MANIFESTS)

    def warm(self, row: CondensedSet, now: datetime) -> SignedManifest | None:
        """The manifest if it was written in this hour."""
        return self._kept.get((row.name, row.version, expiry(now, self._days)))

    def write(self, row: CondensedSet, now: datetime) -> SignedManifest:
        """The manifest of a version, dated and signed."""
        expires = expiry(now, self._days)
        written = write_manifest(row.manifest, self._key, expires)
        self._kept.put((row.name, row.version, expires), written)
        return written


def write_manifest(document: Mapping[str, Any], key: PrivateKey, expires: datetime) -> SignedManifest:
    """Both representations of a stored manifest that must not be used after `expires` (UTC), with its verdicts."""
    accuracy = judged(document["accuracy"], document["ipc"])
    whole = {**document, "accuracy": accuracy, "expires": expires.isoformat(timespec="seconds")}
    body = json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()
    return SignedManifest(Written.of(JSON, body), Written.of(JOSE, sign(body, key).encode()))


def expiry(now: datetime, days: int) -> datetime:
    """`days` after the hour that `now` is in, so that a manifest stays the same for an hour."""
    return now.replace(minute=0, second=0, microsecond=0) + timedelta(days=days)
