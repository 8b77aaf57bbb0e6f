"""Read the server's error responses: problem+json (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemDetails:
    """What an error response says; empty if it says nothing readable."""

    detail: str | None = None
    """What went wrong."""
    code: str | None = None
    """The server's stable name for the problem."""
    fields: tuple[str, ...] = ()
    """One `field: message` for each invalid field."""


def parse_problem(media_type: str, body: bytes) -> ProblemDetails:
    """The problem in a response; an empty one if the body is no problem+json."""
    if not media_type.startswith(MEDIA_TYPE):
        return ProblemDetails()
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ProblemDetails()
    if not isinstance(document, Mapping):
        return ProblemDetails()
    errors = document.get("errors")
    return ProblemDetails(
        detail=_text(document.get("detail")) or _text(document.get("title")),
        code=_text(document.get("code")),
        fields=tuple(
            f"{one['field']}: {one['message']}"
            for one in (errors if isinstance(errors, list) else ())
            if isinstance(one, Mapping) and {"field", "message"} <= one.keys()
        ),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
