"""A least-recently-used cache, limited by weight (such as bytes) rather than by number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """A cache with a total weight. Thread-safe."""

    def __init__(self, capacity: int, weigh: Callable[[V], int] = lambda value: 1) -> None:
        """`weigh` gives the weight of a value (default: 1 each). A capacity of 0 caches nothing."""
        self._capacity = capacity
        self._weigh = weigh
        self._values: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    @property
    def weight(self) -> int:
        """Total weight of the cached values."""
        return self._weight

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        """Cache a value in place of a former one. A value heavier than the capacity is not cached."""
        weight = self._weigh(value)
        with self._lock:
            self._drop(key)
            if weight > self._capacity:
                return
            self._values[key] = value
            self._weight += weight
            while self._weight > self._capacity:
                self._drop(next(iter(self._values)))

    def drop(self, key: K) -> None:
        """Remove the value, if it is cached."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._weight -= self._weigh(value)
