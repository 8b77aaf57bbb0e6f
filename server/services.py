"""The effects behind the API: made once per application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mdc_core.delivery.signing import PrivateKey
from server.access.authenticate import Authenticator
from server.access.callers import KnownKeys
from server.access.ratelimit import RateLimits
from server.caching.lru import Lru
from server.delivery.catalog import Catalog
from server.delivery.fast_path import FastPath
from server.delivery.manifests import Manifests
from server.delivery.rank_cache import RankCache
from server.jobs.event_stream import Watchers
from server.jobs.wakeup import Wakeup
from server.metrics import Metrics
from server.settings import Settings
from server.store.db import Database
from server.store.objects import ObjectStore
from server.uploads.inspect import Inspections
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
    authenticator: Authenticator
    catalog: Catalog
    manifests: Manifests
    ranks: RankCache
    fast_path: FastPath
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
