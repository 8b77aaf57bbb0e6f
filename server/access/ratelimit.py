"""How often a key may be used, and how often one address may come with keys that do not work.

Counted in fixed windows: in Redis when that is the broker, so that all API processes count together, else in this
process. Reading sets and subsets is not counted per key, because a thousand devices may share one.
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
"""A Redis that takes longer is away."""
AWAY_SECONDS = 10.0
"""How long it is not asked again then."""

T = TypeVar("T")


class RateLimits:
    """Counts, and refuses with 429 what is too much. While Redis is away everything passes, and the log says so."""

    def __init__(self, key_rate: str, refusal_rate: str, broker_url: str, prefix: str = "mdc:") -> None:
        """Rates are written like `6000/minute`; an empty one is no limit. `prefix` is that of the keys in Redis."""
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
        # Imported here: an API without Redis would hold its client in memory for nothing.
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
        """Count a request with this key. `Problem` 429 when there were too many."""
        rate = self._key_rate
        if rate is not None and await self._ask(lambda: self._limiter.hit(rate, "key", key_id)) is False:
            raise await self._refusal(rate, "key", key_id, f"the API key {key_id} was used more than {rate}")

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Wait until no other key from this address is tried in this process.

        Else those who guess would keep the database from everybody else.
        """
        async with self._turns.setdefault(address, asyncio.Lock()):
            yield

    async def count_refused(self, address: str) -> None:
        """Count a key that did not work. `Problem` 429 when it was one too many from the address."""
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
        """The answer of the counter; None while it is away."""
        if time.monotonic() < self._ask_again:
            return None
        try:
            return await question()
        except self._away as error:
            self._ask_again = time.monotonic() + AWAY_SECONDS
            structlog.get_logger().warning("rates are not limited", error=repr(error))
            return None
