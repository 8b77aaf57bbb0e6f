"""Metrics for Prometheus at `/metrics`, one registry per application. docs/reference/metrics.md lists them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.delivery.fast_path import FastPath
from server.jobs.event_stream import Watchers
from server.store import queue
from server.store.db import Database
from server.store.states import JobState
from server.store.tables import utcnow

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds."""
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class Metrics(Collector):
    """The metrics of one process, and of the queue, which every process reports alike."""

    def __init__(self, db: Database, watchers: Watchers, fast_path: FastPath) -> None:
        """`db` is queried for the queue on every scrape."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # no series of creation times
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "mdc_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "mdc_request_seconds",
            "Time until an answer began.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._sent = Counter("mdc_sent_bytes", "Bytes of answers.", ["route"], registry=self.registry)
        self.uploaded = Counter(
            "mdc_uploaded_bytes", "Bytes of data sets that have arrived whole.", registry=self.registry
        )
        streams = Gauge("mdc_event_streams", "Streams of events that are open.", registry=self.registry)
        streams.set_function(lambda: watchers.count)
        self.registry.register(_Queue(db))
        self._fast_path = fast_path
        self.registry.register(self)

    def answered(self, method: str, route: str, status: int, seconds: float, sent: int) -> None:
        """Count a request that took the ordinary path."""
        if method not in METHODS:  # any method name may arrive, and each would be a series for ever
            method = "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
        self._sent.labels(route).inc(sent)

    def collect(self) -> Iterator[Metric]:
        """Requests that the fast path served."""
        yield CounterMetricFamily(
            "mdc_memory_answers", "Subsets and ranks answered from memory.", self._fast_path.answers
        )
        yield CounterMetricFamily("mdc_memory_sent_bytes", "Their bytes.", self._fast_path.sent_bytes)


class _Queue(Collector):
    """Jobs that have not ended, by one query per scrape."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def collect(self) -> Iterator[Metric]:
        """The queue, or only that the database is unavailable."""
        now = utcnow()
        try:
            with self._db.read() as session:
                depths = queue.depths(session, now)
        except SQLAlchemyError as error:
            structlog.get_logger().warning("queue not counted", error=repr(error))
            yield GaugeMetricFamily("mdc_database_up", "Whether the database answers.", 0)
            return
        yield GaugeMetricFamily("mdc_database_up", "Whether the database answers.", 1)
        jobs = GaugeMetricFamily("mdc_jobs", "Jobs that have not ended.", labels=["state"])
        for state, depth in depths.items():
            jobs.add_metric([state.value], depth.jobs)
        yield jobs
        oldest = depths[JobState.QUEUED].oldest
        age = 0.0 if oldest is None else (now - oldest).total_seconds()
        yield GaugeMetricFamily("mdc_oldest_queued_seconds", "Age of the oldest job that waits.", age)
        expired = sum(depth.expired for depth in depths.values())
        yield GaugeMetricFamily("mdc_expired_leases", "Running jobs whose worker has vanished.", expired)
        interruptions = sum(depth.interruptions for depth in depths.values())
        yield GaugeMetricFamily(
            "mdc_interruptions", "Attempts that went wrong, of the jobs that have not ended.", interruptions
        )


class Measured:
    """Middleware that counts requests by the template of their route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """`app` is the application inside."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        began, status, sent = None, 500, 0

        async def counted(message: Message) -> None:
            nonlocal began, status, sent
            if message["type"] == "http.response.start":
                began, status = time.perf_counter(), message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            seconds = (began or time.perf_counter()) - started
            self._metrics.answered(scope["method"], template(scope), status, seconds, sent)


def template(scope: Scope) -> str:
    """The template of the matched route, such as `/v1/jobs/{job_id}`; `none` without a match."""
    return str(getattr(scope.get("route"), "path", "none"))
