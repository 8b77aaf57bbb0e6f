"""Callers, and the cache of API keys that were confirmed lately."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from server.caching.revalidating import RevalidatingCache
from server.store.tables import utcnow

Scope = Literal["jobs:read", "jobs:write", "subsets:read", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
"""What a key may be allowed to do; `admin` implies the others."""

CACHED_KEYS = 10_000
"""Number of API keys to cache."""


class PresentedKey(NamedTuple):
    """A key as a request brings it, without its secret."""

    key_id: str
    """Empty: the token has not the form of a key."""
    secret_hmac: str


@dataclass(frozen=True)
class Caller:
    """Who sent the request."""

    key_id: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """Whether the caller sees what others own."""
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        """Whether the caller's key has the scope; `admin` implies every other."""
        return self.is_admin or scope in self.scopes

    @property
    def sees(self) -> str | None:
        """The owner whose rows the caller may see; None: everybody's."""
        return None if self.is_admin else self.key_id


@dataclass(frozen=True)
class _Known:
    caller: Caller
    secret_hmac: str
    expires_at: datetime | None


class KnownKeys:
    """Keys that the database has confirmed within `TRUST_SECONDS`: a revoked one works that much longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds."""
        self._trusted: RevalidatingCache[str, _Known] = RevalidatingCache(CACHED_KEYS, clock)
        self.now = self._trusted.now
        self.forget = self._trusted.forget

    def get(self, key: PresentedKey) -> tuple[Caller, bool] | None:
        """The caller, if this very key was confirmed lately and has not expired, and `RevalidatingCache.get`'s hint."""
        found = self._trusted.get(key.key_id)
        if found is None:
            return None
        known, is_ageing = found
        if known.expires_at is not None and known.expires_at <= utcnow():
            return None
        return (known.caller, is_ageing) if hmac.compare_digest(known.secret_hmac, key.secret_hmac) else None

    def met(self, key: PresentedKey) -> bool:
        """Whether this very key has worked here before, however long ago."""
        known = self._trusted.last(key.key_id)
        return known is not None and hmac.compare_digest(known.secret_hmac, key.secret_hmac)

    def put(self, caller: Caller, secret_hmac: str, expires_at: datetime | None, asked: float) -> None:
        """Remember a key that the database has confirmed when asked at that time of `now`."""
        self._trusted.put(caller.key_id, _Known(caller, secret_hmac, expires_at), asked)
