"""A small memory: what was used least recently goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Values under keys, up to a total weight. Threads may share it."""

    def __init__(self, capacity: int, weigh: Callable[[V], int] = lambda value: 1) -> None:
        """`weigh` tells the weight of a value, 1 each if left out; a capacity of 0 keeps nothing."""
        self._capacity = capacity
        self._weigh = weigh
        self._values: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    @property
    def weight(self) -> int:
        """Weight of everything that is kept."""
        return self._weight

    def get(self, key: K) -> V | None:
        """The value, which is now the most recently used."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        """Keep a value in place of a former one; what is heavier than everything may be is not kept."""
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
        """Forget the value, if there is one."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._weight -= self._weigh(value)
