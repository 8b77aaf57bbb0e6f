"""Logging of the API and the workers: JSON lines on standard error, with whatever context is bound."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO, cast

import structlog

_TOLD = 200
"""Characters of a message by which it is known again."""


def configure_logging() -> None:
    """Called once by every process of the service."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        cache_logger_on_first_use=True,
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, StandardError())),
    )
    logging.getLogger("mdc_core").handlers = [_Forward()]  # it logs by the standard library
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(Seldom())


class StandardError:
    """Writes to standard error what can be written: a full disk under the log fails no request and no worker."""

    def write(self, text: str) -> None:
        """As much as there is room for."""
        with suppress(OSError, ValueError):  # ValueError: closed
            sys.stderr.write(text)

    def flush(self) -> None:
        """To the disk, if it takes it."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()


class Seldom(logging.Filter):
    """Lets a message pass a few times a minute: a stranger who causes it again and again does not fill the disk."""

    def __init__(
        self, times: int = 5, seconds: float = 60, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """So many `times` in so many `seconds` of the `clock`, each text for itself."""
        super().__init__()
        self._times, self._seconds, self._clock = times, seconds, clock
        self._begun = clock()
        self._seen: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; the last one of its kind says that more are left out."""
        now = self._clock()
        if now - self._begun >= self._seconds:
            self._begun = now
            self._seen.clear()
        text = str(record.msg)[:_TOLD]
        self._seen[text] += 1
        if self._seen[text] == self._times:
            record.msg = f"{record.msg} (more of these are left out for up to {self._seconds:g} s)"
        return self._seen[text] <= self._times


class _Forward(logging.Handler):
    """Makes a line of the service's log of what a library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def begin_line(**facts: str | int) -> str:
    """What `RequestLines.add` begins with: the part that is the same for every such request, written out once."""
    return json.dumps({**facts, "event": "request", "level": "info"})[:-1]


class RequestLines:
    """The lines that `server.web.problems.log_request` would write, at a tenth of the time.

    For what is answered thousands of times a second. Requests that are answered in one turn of the event loop get one
    timestamp, and are written at once.
    """

    def __init__(self) -> None:
        """Nothing waits to be written."""
        self._lines: list[str] = []

    def add(self, begin: str, request_id: str, key_id: str, seconds: float) -> None:
        """Write that a request is answered, soon. Neither id has a character that JSON would escape."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        self._lines.append(
            f'{begin}, "request_id": "{request_id}", "key_id": "{key_id}", "seconds": {seconds:.4f}, '
        )

    def _write(self) -> None:
        now = datetime.now(UTC).replace(tzinfo=None).isoformat()
        end = f'"timestamp": "{now}Z"}}\n'
        StandardError().write(end.join(self._lines) + end)
        self._lines.clear()
