"""Rate limits: requests per API key, and invalid keys per client address.

Requests are counted in fixed windows. If Redis is the broker, it counts for all API processes together; else each
process counts alone. Reading sets and subsets is not limited per key, because a thousand devices may share one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from server.web.problems import Problem

ANSWER_SECONDS = 0.5
"""Timeout of a request to Redis. After it, Redis counts as unavailable."""
AWAY_SECONDS = 10.0
"""How long an unavailable Redis is left alone."""

T = TypeVar("T")


class RateLimits:
    """Refuses requests above the limits with 429. While Redis is unavailable, everything passes and is logged."""

    def __init__(self, key_rate: str, refusal_rate: str, broker_url: str, prefix: str = "mdc:") -> None:
        """Rates are written like `6000/minute`; an empty one means no limit. `prefix` is the prefix of Redis keys."""
        self._key_rate = parse(key_rate) if key_rate else None
        self._refusal_rate = parse(refusal_rate) if refusal_rate else None
        self._ask_again = 0.0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._close: Callable[[], Awaitable[None]] | None = None
        self._away: tuple[type[Exception], ...] = (OSError,)
        if broker_url.startswith(("redis://", "rediss://")):
            self._count_in_redis(broker_url, prefix)
        else:
            self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def _count_in_redis(self, url: str, prefix: str) -> None:
        # Imported here: an API without Redis does not need its client in memory.
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        pool = ConnectionPool.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix=f"{prefix}rates",
            connection_pool=pool,  # type: ignore[arg-type]
        )
        self._limiter = FixedWindowRateLimiter(storage)
        self._close = pool.aclose
        self._away = (OSError, RedisError)

    async def use(self, key_id: str) -> None:
        """Count a request with this key. Raises `Problem` 429 above the limit."""
        rate = self._key_rate
        if rate is not None and await self._ask(lambda: self._limiter.hit(rate, "key", key_id)) is False:
            raise await self._refusal(rate, "key", key_id, f"the API key {key_id} was used more than {rate}")

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Check the address's unknown keys one at a time.

        Otherwise a client that guesses keys would keep the database busy for everybody else.
        """
        async with self._turns.setdefault(address, asyncio.Lock()):
            yield

    async def count_refused(self, address: str) -> None:
        """Count an invalid key. Raises `Problem` 429 above the address's limit."""
        rate = self._refusal_rate
        if rate is not None and await self._ask(lambda: self._limiter.hit(rate, "from", address)) is False:
            what = f"{address} has sent API keys that do not work more than {rate}"
            raise await self._refusal(rate, "from", address, what)

    async def close(self) -> None:
        """Close the connections."""
        if self._close is not None:
            await self._close()

    async def _refusal(self, rate: RateLimitItem, kind: str, who: str, what: str) -> Problem:
        window = await self._ask(lambda: self._limiter.get_window_stats(rate, kind, who))
        seconds = rate.get_expiry() if window is None else max(1, math.ceil(window.reset_time - time.time()))
        detail = f"{what}: try again in {seconds} s"
        return Problem(429, "rate-limited", detail, headers={"Retry-After": str(seconds)})

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """The counter's answer; None while it is unavailable."""
        if time.monotonic() < self._ask_again:
            return None
        try:
            return await question()
        except self._away as error:
            self._ask_again = time.monotonic() + AWAY_SECONDS
            structlog.get_logger().warning("rates are not limited", error=repr(error))
            return None
