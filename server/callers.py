"""Who sends requests, and the keys that were checked a moment ago."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from server.catalog import TRUST_SECONDS
from server.lru import Lru
from server.store.tables import utcnow

Scope = Literal["jobs:read", "jobs:write", "subsets:read", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
"""What a key may be allowed to do; `admin` implies the others."""

KEPT = 10_000
"""Keys that are kept."""


@dataclass(frozen=True)
class Caller:
    """Who sent the request."""

    key_id: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """Whether the caller sees what others own."""
        return "admin" in self.scopes

    @property
    def sees(self) -> str | None:
        """The owner whose rows the caller may see; None: everybody's."""
        return None if self.is_admin else self.key_id


@dataclass(frozen=True)
class _Known:
    caller: Caller
    secret_hmac: str
    expires_at: datetime | None
    checked: float


class KnownKeys:
    """Keys that the database has confirmed within `TRUST_SECONDS`: a revoked one works that much longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds."""
        self._clock = clock
        self._kept: Lru[str, _Known] = Lru(KEPT)

    def get(self, key_id: str, secret_hmac: str) -> Caller | None:
        """The caller, if this very key was confirmed lately and has not expired since."""
        known = self._kept.get(key_id)
        if known is None or self._clock() - known.checked >= TRUST_SECONDS:
            return None
        if known.expires_at is not None and known.expires_at <= utcnow():
            return None
        return known.caller if hmac.compare_digest(known.secret_hmac, secret_hmac) else None

    def met(self, key_id: str, secret_hmac: str) -> bool:
        """Whether this very key has worked here before, however long ago."""
        known = self._kept.get(key_id)
        return known is not None and hmac.compare_digest(known.secret_hmac, secret_hmac)

    def now(self) -> float:
        """The time to be taken before the database is asked."""
        return self._clock()

    def put(self, caller: Caller, secret_hmac: str, expires_at: datetime | None, checked: float) -> None:
        """Remember a key that the database has confirmed at `checked`."""
        self._kept.put(caller.key_id, _Known(caller, secret_hmac, expires_at, checked))

    def forget(self, key_id: str) -> None:
        """Ask the database about the key before it is accepted again."""
        self._kept.drop(key_id)
