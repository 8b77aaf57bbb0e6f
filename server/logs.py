"""Logging of the API and the workers: JSON lines on standard error, with whatever context is bound."""

from __future__ import annotations

import sys

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
