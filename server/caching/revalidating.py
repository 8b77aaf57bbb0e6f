"""What the database has confirmed a moment ago, and may be relied on without asking it again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from server.caching.lru import Lru

TRUST_SECONDS = 5.0
"""How long a version is delivered, or a key accepted, before the database is asked whether it still may be."""

K = TypeVar("K")
V = TypeVar("V")


class RevalidatingCache(Generic[K, V]):
    """Values with the time at which the database was asked about them. Threads may share it."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`capacity` is the number of values; `clock` tells seconds."""
        self._kept: Lru[K, tuple[V, float]] = Lru(capacity)
        self._clock = clock

    def now(self) -> float:
        """The time, to be taken before the database is asked: its answer is no newer."""
        return self._clock()

    def put(self, key: K, value: V, asked: float) -> None:
        """Keep a value that the database has confirmed when asked at that time."""
        self._kept.put(key, (value, asked))

    def get(self, key: K) -> tuple[V, bool] | None:
        """The value, and whether it is time to ask again though it may still be relied on; None: it may not."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        age = self._clock() - kept[1]
        return (kept[0], age >= TRUST_SECONDS / 2) if age < TRUST_SECONDS else None

    def last(self, key: K) -> V | None:
        """The value however old: what can never change is not read again."""
        kept = self._kept.get(key)
        return None if kept is None else kept[0]

    def forget(self, key: K) -> None:
        """Ask the database before the value is relied on again."""
        self._kept.drop(key)
