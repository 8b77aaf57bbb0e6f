"""SIGTERM in a child: sets a flag at any time, raises an exception only where that is safe."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class StopRequestedError(Exception):
    """SIGTERM has arrived."""


class Stopping:
    """Turns SIGTERM into `StopRequestedError` at safe points.

    An exception raised by a signal handler could interrupt anything, even a transaction. It is therefore raised only
    inside `interruptible` blocks, which do nothing but compute. Elsewhere the request waits for the next such block,
    or for `check`.
    """

    def __init__(self) -> None:
        self._requested = False
        self._open = False

    def listen(self) -> None:
        """Handle SIGTERM, and ignore Ctrl-C: in a terminal that is for the supervisor."""
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def check(self) -> None:
        """Raise `StopRequestedError` if a stop was requested."""
        if self._requested:
            raise StopRequestedError

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a stop may interrupt at any point."""
        self._open = True
        try:
            self.check()
            yield
        finally:
            self._open = False

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each computed in an interruptible block."""
        iterator = iter(items)
        while True:
            with self.interruptible():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self._requested = True
        if self._open:
            self._open = False
            raise StopRequestedError
