"""Threads that wait for the object store: their own, so that a store that hangs holds up nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from server.web.problems import RETRY_SECONDS, Problem

THREADS = 24
"""Waits for the store at the same time."""
QUEUE_SECONDS = 5.0
"""Who has waited for so long for one of them is refused."""

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class StoreThreads:
    """Runs what asks the object store."""

    def __init__(self) -> None:
        """All of them are free."""
        self._free = asyncio.Semaphore(THREADS)
        self._limiter: CapacityLimiter | None = None

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """The function's result. `Problem` 503 when too many wait for the store already."""
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise Problem(
                503,
                "store-unavailable",
                "the object store is slow, and too many wait for it: send the request again in a while",
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from None
        try:
            if self._limiter is None:
                self._limiter = CapacityLimiter(THREADS)
            return await run_sync(function, *arguments, limiter=self._limiter)
        finally:
            self._free.release()

    async def each(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """What an iterator gives that reads from the store."""
        end = object()
        while (piece := await self.run(next, pieces, end)) is not end:
            yield piece  # type: ignore[misc]
