"""A lock that is given to the one who has waited longest."""

from __future__ import annotations

from collections import deque
from threading import Lock


class FairLock:
    """As a context manager: one thread at a time is inside, in the order in which they came.

    A plain lock goes to whichever thread the system wakes, or to one that has just come: some wait for seconds.
    """

    def __init__(self) -> None:
        self._guard = Lock()
        self._queue: deque[Lock] = deque()
        """Of the thread inside, then of those that wait; the latter are locked."""

    def __len__(self) -> int:
        """Threads that are inside or wait."""
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
