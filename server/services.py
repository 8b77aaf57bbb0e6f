"""The effects behind the API: made once per application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mdc_core.delivery.signing import PrivateKey
from server.access.authenticate import Authenticator
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

CONCURRENT_REQUESTS = 3
"""Requests about jobs to process at the same time. More would only slow each other down."""
CONCURRENT_INSPECTIONS = 2
"""Uploads to inspect at the same time, each in a process of up to 200 MB."""
PICTURE_BYTES = 8 * 2**20
"""Size of the cache of previews."""
CONCURRENT_PLANS = 2
"""Plans to compute at the same time. Each holds the GIL for milliseconds."""


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
    authenticator: Authenticator
    catalog: Catalog
    manifests: Manifests
    ranks: RankCache
    fast_path: FastPath
    watchers: Watchers
    rates: RateLimits
    metrics: Metrics
    at_work: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_REQUESTS))
    planning: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_PLANS))
    inspecting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_INSPECTIONS))
    inspections: Inspections = field(default_factory=Inspections)
    pictures: Lru[str, bytes] = field(default_factory=lambda: Lru(PICTURE_BYTES, len))
    drawing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    store_threads: StoreThreads = field(default_factory=StoreThreads)
