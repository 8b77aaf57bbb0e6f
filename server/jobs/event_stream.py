"""Stream jobs as server-sent events, at a cost that hardly depends on the number of watchers.

One task per process reads the state of all watched jobs in one query per second. A change is encoded once and shared
by all streams of the job. A stream only remembers the last event it sent, so nothing is queued for slow readers: they
get the newest progress when they catch up.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from server.schemas.jobs import JobEventResponse, Progress
from server.store import events
from server.store.db import Database
from server.store.states import ENDED, JobState
from server.store.tables import JobEvent
from server.web.problems import Problem

POLL_SECONDS = 1.0
"""Interval between two queries."""
HEARTBEAT_SECONDS = 15.0
"""A keep-alive comment is sent after this silence, so that proxies keep the connection."""
LONGEST_SECONDS = 3600.0
"""Maximum age of a stream. The client reconnects by itself, and its key is checked again."""
RETRY_MS = 2000
"""The client's delay before it reconnects."""
MOST = 1000
"""Maximum number of open streams per process."""
BUSY_SECONDS = 30
"""`Retry-After` when there are too many streams."""


class _Watched:
    """A watched job, encoded for sending."""

    def __init__(self) -> None:
        self.watchers = 0
        self.newest = 0
        """Id of the newest event read."""
        self.events: list[tuple[int, bytes]] = []
        self.progress = b""
        self.ended = False
        self.changed = asyncio.Event()

    def tell(self) -> None:
        """Wake the streams of this job."""
        self.changed.set()
        self.changed = asyncio.Event()

    def add(self, head: events.Head, rows: list[JobEvent]) -> None:
        """Encode what was read, and wake the streams if anything changed."""
        progress = _progress_frame(head)
        if not rows and progress == self.progress:
            return
        self.progress = progress
        for row in rows:
            self.events.append((row.id, _event_frame(row)))
            self.newest = row.id
            self.ended = JobState(row.state) in ENDED
        self.tell()


class Watchers:
    """The streams of one process. Only the queries run outside its event loop."""

    def __init__(
        self,
        db: Database,
        *,
        poll: float = POLL_SECONDS,
        most: int = MOST,
        most_of_key: int = MOST,
        longest: float = LONGEST_SECONDS,
    ) -> None:
        """Query the database every `poll` seconds.

        Allow `most` streams at a time, `most_of_key` of them per API key, each for up to `longest` seconds.
        """
        self._db = db
        self._poll_seconds = poll
        self._most = most
        self._most_of_key = most_of_key
        self._longest = longest
        self._jobs: dict[str, _Watched] = {}
        self._of_keys: Counter[str] = Counter()
        self._new = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def count(self) -> int:
        """Number of open streams."""
        return self._of_keys.total()

    def stream(self, job_id: str, key_id: str, after: int) -> EventSourceResponse:
        """A response that streams a job's events after the one with id `after`, its progress, and its end.

        It is a 429 if too many streams are open, in total or for this API key.
        """
        return _Stream(self, job_id, key_id, after)

    def close(self) -> None:
        """End all streams. Their clients reconnect to another process."""
        self._closed = True
        for job in self._jobs.values():
            job.tell()

    @contextmanager
    def watching(self, job_id: str, key_id: str) -> Iterator[_Watched]:
        """Watch the job while the block runs. Raises `Problem` 429."""
        self._check_room(job_id, key_id)
        job = self._jobs.get(job_id)
        if job is None:
            job = self._jobs[job_id] = _Watched()
            self._new.set()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._keep_reading())
        job.watchers += 1
        self._of_keys[key_id] += 1
        try:
            yield job
        finally:
            job.watchers -= 1
            if job.watchers == 0:
                del self._jobs[job_id]
            self._of_keys[key_id] -= 1
            if self._of_keys[key_id] == 0:
                del self._of_keys[key_id]

    def _check_room(self, job_id: str, key_id: str) -> None:
        """Raise `Problem` 429 if the limit is reached. Called as a stream starts, so that concurrent requests count."""
        if self._of_keys[key_id] >= self._most_of_key:
            full = f"the API key {key_id} has {self._most_of_key} streams open, the limit per key"
        elif self._closed or self.count >= self._most:
            full = "this server has too many streams open"
        else:
            return
        raise Problem(
            429,
            "too-many-streams",
            f"{full}: try again later, or poll /v1/jobs/{job_id}",
            headers={"Retry-After": str(BUSY_SECONDS)},
        )

    async def frames(self, job: _Watched, after: int) -> AsyncIterator[bytes]:
        """The frames of one stream."""
        yield format_sse_event(retry=RETRY_MS)
        until = time.monotonic() + self._longest
        shown = b""
        while not self._closed and time.monotonic() < until:
            changed, ended, progress = job.changed, job.ended, job.progress
            for number, frame in job.events.copy():
                if number > after:
                    yield frame
                    after = number
            if ended:
                return
            if progress != shown:
                yield progress
                shown = progress
            try:
                async with asyncio.timeout(min(HEARTBEAT_SECONDS, self._longest)):
                    await changed.wait()
            except TimeoutError:
                yield KEEPALIVE_COMMENT

    async def _keep_reading(self) -> None:
        """Read watched jobs until there are none."""
        while self._jobs:
            self._new.clear()
            jobs = dict(self._jobs)
            try:
                changes = await run_in_threadpool(
                    self._read, {name: job.newest for name, job in jobs.items()}
                )
            except SQLAlchemyError as error:  # the database may be restarting; the streams wait
                structlog.get_logger().warning("watched jobs not read", error=repr(error))
            else:
                for head, rows in changes:
                    jobs[head.job_id].add(head, rows)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._new.wait()

    def _read(self, seen: dict[str, int]) -> list[tuple[events.Head, list[JobEvent]]]:
        with self._db.read() as session:
            heads = events.heads(session, seen)
            behind = {head.job_id: seen[head.job_id] for head in heads if head.newest > seen[head.job_id]}
            rows: dict[str, list[JobEvent]] = {job_id: [] for job_id in behind}
            for row in events.newer(session, behind):
                rows[row.job_id].append(row)
        return [(head, rows.get(head.job_id, [])) for head in heads]


class _Stream(EventSourceResponse):
    """A stream that ends as soon as its client disconnects."""

    def __init__(self, watchers: Watchers, job_id: str, key_id: str, after: int) -> None:
        super().__init__(iter(()), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._watchers, self._job_id, self._key_id, self._after = watchers, job_id, key_id, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._watchers.watching(self._job_id, self._key_id) as job:
            self.body_iterator = self._watchers.frames(job, self._after)
            await super().__call__(scope, receive, send)


def _event_frame(row: JobEvent) -> bytes:
    data = JobEventResponse.of(row).model_dump_json()
    return format_sse_event(event="state", id=str(row.id), data_str=data)


def _progress_frame(head: events.Head) -> bytes:
    """A frame without an id: a client that reconnects names its last event, and gets the progress again."""
    data = Progress.of(head.state, head.attempt, head.progress).model_dump_json()
    return format_sse_event(event="progress", data_str=data)


@contextmanager
def called_at_exit_signals(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` in the event loop on SIGTERM or SIGINT.

    Without this, the server would wait for every response to end before it tells the application: up to an hour.
    """
    if threading.current_thread() is not threading.main_thread():  # signals arrive in the main thread only
        yield
        return
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(close)
        handler = former[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in former:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
