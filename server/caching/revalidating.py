"""Cache what the database has confirmed, and revalidate it within a few seconds.

A device fleet asks for the same versions with the same keys thousands of times a second. Asking the database each time
would make it the bottleneck. The price is a window: a version that is withdrawn, or a key that is revoked, through
another process stays usable here for up to `TRUST_SECONDS`. Five seconds are short for an operator who revokes a key,
and one query per key and version every few seconds is nothing for the database. The process that serves the withdrawal
or revocation itself forgets the value at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from server.caching.lru import Lru

TRUST_SECONDS = 5.0
"""How long a version is delivered, or a key accepted, without asking the database again."""

K = TypeVar("K")
V = TypeVar("V")


class RevalidatingCache(Generic[K, V]):
    """Values, each with the time of the query that confirmed it. Thread-safe."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`capacity` is the number of values. `clock` returns seconds."""
        self._entries: Lru[K, tuple[V, float]] = Lru(capacity)
        self._clock = clock

    def now(self) -> float:
        """The current time. Take it before the query: the answer may be as old as that."""
        return self._clock()

    def put(self, key: K, value: V, asked: float) -> None:
        """Cache a value that a query at the time `asked` has confirmed."""
        self._entries.put(key, (value, asked))

    def get(self, key: K) -> tuple[V, bool] | None:
        """The value, and whether to revalidate it already (from half of `TRUST_SECONDS` on); None if too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, asked = entry
        age = self._clock() - asked
        return (value, age >= TRUST_SECONDS / 2) if age < TRUST_SECONDS else None

    def last(self, key: K) -> V | None:
        """The value, however old, for content that never changes."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def forget(self, key: K) -> None:
        """Require a query before the value is used again."""
        self._entries.drop(key)
