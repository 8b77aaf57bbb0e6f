"""What the routes work with: made once per application, handed to them by FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from mdc_core.delivery.signing import PrivateKey
from server.access.callers import KnownKeys
from server.access.ratelimit import RateLimits
from server.caching.lru import Lru
from server.delivery.catalog import Catalog
from server.delivery.manifests import Manifests
from server.delivery.rank_cache import Ranks
from server.jobs.event_stream import Watchers
from server.jobs.wakeup import Wakeup
from server.metrics import Metrics
from server.settings import Settings
from server.store.db import Database
from server.store.ids import from_cursor
from server.store.objects import ObjectStore
from server.uploads.inspect import Inspections
from server.web.problems import FieldError, invalid
from server.web.store_threads import StoreThreads

AT_ONCE = 3
"""Requests about jobs that are worked on at the same time: more would only take time from each other."""
INSPECTED_AT_ONCE = 2
"""Uploads that are looked into at the same time, each by a process that may take 200 MB."""
PICTURE_BYTES = 8 * 2**20
"""Memory for previews that were asked for."""


PLANNED_AT_ONCE = 2
"""Plans that are worked out at the same time: milliseconds each, in which nothing else of Python runs."""


@dataclass(frozen=True)
class Services:
    """The effects behind the API."""

    settings: Settings
    db: Database
    objects: ObjectStore
    wakeup: Wakeup
    secret_key: bytes
    manifest_keys: tuple[PrivateKey, ...]
    """The first signs, all are published."""
    known_keys: KnownKeys
    catalog: Catalog
    manifests: Manifests
    ranks: Ranks
    watchers: Watchers
    rates: RateLimits
    metrics: Metrics
    at_work: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    planning: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PLANNED_AT_ONCE))
    inspecting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(INSPECTED_AT_ONCE))
    inspections: Inspections = field(default_factory=Inspections)
    pictures: Lru[str, bytes] = field(default_factory=lambda: Lru(PICTURE_BYTES, len))
    drawing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    store_threads: StoreThreads = field(default_factory=StoreThreads)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


async def _in_turn(services: ServicesDep) -> AsyncIterator[None]:
    async with services.at_work:
        yield


InTurn = Depends(_in_turn, scope="function")
"""For routes whose work is the database's: a request waits for those that came before it, once.

Otherwise all that have come are begun, wait for each other at every step, and the last of many waits twice as long.
Neither bodies that arrive slowly nor streams hold up others: a body is read before, a response is sent after it.
"""


def links(**parameters: dict[str, str]) -> dict[str, Any]:
    """OpenAPI links from a response: operation id to its parameters, each a field of the response's body."""
    return {
        "links": {
            operation: {
                "operationId": operation,
                "parameters": {name: f"$response.body#/{field}" for name, field in fields.items()},
            }
            for operation, fields in parameters.items()
        }
    }


LimitQuery = Annotated[int, Query(ge=1, le=100, description="Entries per page.")]


async def _after(
    after: Annotated[
        str | None, Query(max_length=300, description="`next_cursor` of the page before.")
    ] = None,
) -> str | None:
    """The position in the cursor."""
    if after is None:
        return None
    try:
        return from_cursor(after)
    except ValueError as error:
        raise invalid("invalid-request", [FieldError(field="query.after", message=str(error))]) from error


AfterQuery = Annotated[str | None, Depends(_after)]
"""Where a list goes on; None: at its beginning."""
