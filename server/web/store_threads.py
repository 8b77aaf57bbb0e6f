"""A separate thread pool for the object store, so that a hanging store blocks nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from server.web.problems import RETRY_STORE_SECONDS, Problem

THREADS = 24
"""Concurrent requests to the store."""
QUEUE_SECONDS = 5.0
"""A request that waits longer for a thread is refused."""

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class StoreThreads:
    """Runs functions that use the object store."""

    def __init__(self) -> None:
        """Start with all threads free."""
        self._free = asyncio.Semaphore(THREADS)
        self._limiter: CapacityLimiter | None = None

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Run the function in a thread. Raises `Problem` 503 if too many requests wait for the store."""
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise Problem(
                503,
                "store-unavailable",
                "the object store is slow, and too many wait for it: send the request again in a while",
                headers={"Retry-After": str(RETRY_STORE_SECONDS)},
            ) from None
        try:
            if self._limiter is None:
                self._limiter = CapacityLimiter(THREADS)
            return await run_sync(function, *arguments, limiter=self._limiter)
        finally:
            self._free.release()

    async def each(self, pieces: Iterator[T]) -> AsyncIterator[T]:
        """Yield the items of an iterator that reads from the store."""
        end = object()
        while (piece := await self.run(next, pieces, end)) is not end:
            yield piece  # type: ignore[misc]
