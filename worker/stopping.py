"""SIGTERM in a child: a flag at any time, an exception only where it can do no harm."""

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
    """An exception out of a signal handler can hit anything, a half-written transaction too.

    So it is raised inside `interruptible` blocks alone, which hold computation and nothing else; elsewhere the
    request waits for the next such block, or for `check`.
    """

    def __init__(self) -> None:
        self._requested = False
        self._open = False

    def listen(self) -> None:
        """Take over SIGTERM, and ignore Ctrl-C, which in a terminal is meant for the supervisor."""
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def check(self) -> None:
        """Raise `StopRequestedError` when a stop has been asked for."""
        if self._requested:
            raise StopRequestedError

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that the request may end at any point."""
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
