"""Identifiers that sort by creation time, and the opaque cursors of lists."""

from __future__ import annotations

import base64
import secrets
import time


def new_id(prefix: str) -> str:
    """`prefix_` and 32 hexadecimal digits: 48 bits of milliseconds, then 80 random ones (like a UUIDv7)."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def to_cursor(position: str) -> str:
    """The cursor that continues a list after `position`."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def from_cursor(cursor: str) -> str:
    """The position in a cursor. Raises `ValueError` if the cursor is invalid."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        position = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        if not position.isprintable():
            raise ValueError("a position is the id or name of a row")
        return position
    except ValueError as error:  # also binascii.Error and UnicodeDecodeError
        raise ValueError(
            f"{cursor[:80]!r} is not a cursor: use the next_cursor of the page before"
        ) from error
