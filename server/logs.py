"""Logging of the API and the workers: JSON lines on standard error, with whatever context is bound."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import structlog


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def begin_line(**facts: str | int) -> str:
    """What `finished_line` begins with: the part of a line that is the same for every request, written out once."""
    return json.dumps({**facts, "event": "request", "level": "info"})[:-1]


def finished_line(begin: str, request_id: str, key_id: str, seconds: float) -> str:
    """The line that `server.problems.log_request` would write, at a tenth of the time, to be written as it is.

    For what is answered thousands of times a second. Neither id has a character that JSON would escape.
    """
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    return (
        f'{begin}, "request_id": "{request_id}", "key_id": "{key_id}", "seconds": {seconds:.4f}, '
        f'"timestamp": "{now}Z"}}\n'
    )
