"""A lock that threads get in the order in which they asked for it."""

from __future__ import annotations

from collections import deque
from threading import Lock


class FairLock:
    """A first-come, first-served lock, as a context manager.

    A plain lock goes to whichever thread the system wakes, or to one that has just arrived, so that others starve for
    seconds.
    """

    def __init__(self) -> None:
        self._guard = Lock()
        self._queue: deque[Lock] = deque()
        """One lock per thread: the holder's first, then those of waiting threads, which are locked."""

    def __len__(self) -> int:
        """Number of threads that hold the lock or wait for it."""
        return len(self._queue)

    def __enter__(self) -> None:
        mine = Lock()
        with self._guard:
            if self._queue:
                mine.acquire()
            self._queue.append(mine)
        mine.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._queue.popleft()
            if self._queue:
                self._queue[0].release()
