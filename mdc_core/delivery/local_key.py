"""The admin key of a service on this machine: `mdc up` writes it to its data folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

_HERE = frozenset({"127.0.0.1", "localhost", "::1"})


def is_here(url: str) -> bool:
    """Whether a URL points to this machine; the key is never sent elsewhere."""
    try:
        return urlsplit(url).hostname in _HERE
    except ValueError:
        return False


def key_file() -> Path:
    """The file of the admin key, relative to the folder where `mdc up` was started."""
    return Path(os.environ.get("MDC_DATA_DIR", "mdc-data")) / "admin.key"


def local_key(url: str) -> str | None:
    """The admin key for a service at `url`; None if it is on another machine, or if no key can be read."""
    if not is_here(url):
        return None
    try:
        return key_file().read_text().strip() or None
    except (OSError, ValueError):
        return None
