"""The key of a service on this machine that runs without other servers: `mdc up` leaves it in its data folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

_HERE = frozenset({"127.0.0.1", "localhost", "::1"})


def is_here(url: str) -> bool:
    """Whether a URL is of this machine: no other one is ever given the key."""
    try:
        return urlsplit(url).hostname in _HERE
    except ValueError:
        return False


def key_file() -> Path:
    """Where the admin key is, seen from the folder where `mdc up` was started."""
    return Path(os.environ.get("MDC_DATA_DIR", "mdc-data")) / "admin.key"


def local_key(url: str) -> str | None:
    """The admin key for a service at `url`; None on another machine, or where this user finds or may read none."""
    if not is_here(url):
        return None
    try:
        return key_file().read_text().strip() or None
    except (OSError, ValueError):
        return None
