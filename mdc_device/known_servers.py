"""What this device knows of servers, across all files: their keys, and the versions of their sets.

There is one file per server, in the folder `mdc-device` of $XDG_STATE_HOME (default: ~/.local/state). So an old
manifest is refused whatever file it is for, and keys pinned for one file hold for the next.

A server on this machine is only remembered beside each file. Such an address can change hands: a new installation, or
the end of a tunnel.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mdc_core.delivery.local_key import is_here
from mdc_core.errors import FormatError
from mdc_device import files

if TYPE_CHECKING:
    from mdc_device.state import Published

KNOWN_VERSION = 1
VERSIONS = 100
"""How many versions of a set are remembered, the newest first."""


@dataclass(frozen=True)
class Known:
    """What is known of one server."""

    keyset: Mapping[str, Any] | None
    """Its pinned keys, a JWKS; None if it did not sign."""
    trust: str
    """Where the keys came from; see `mdc_device.trust`."""
    sets: Mapping[str, Mapping[int, str]]
    """For each set: the seen versions, and the sha256 of each version's object."""


def path_of(url: str) -> Path:
    """The file about the server at `url`."""
    state_home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state_home) if os.path.isabs(state_home) else Path(os.path.expanduser("~/.local/state"))
    host = re.sub(r"[^a-z0-9.-]", "_", (urlsplit(url).hostname or "").lower())[:100]
    return base / "mdc-device" / f"{host}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"


def recall(url: str) -> Known | None:
    """What is known of the server at `url`; None if nothing, or if it is on this machine.

    Raises `FormatError` if the file about it is damaged.
    """
    if is_here(url):
        return None
    where = path_of(url)
    try:
        document = json.loads(where.read_bytes())
        if document["known_version"] != KNOWN_VERSION:
            raise FormatError(f"{where} has another version than {KNOWN_VERSION}: update mdc-device")
        sets = {
            str(name): {int(version): str(sha256) for version, sha256 in versions.items()}
            for name, versions in document["sets"].items()
        }
        keyset = document["keyset"]
        if keyset is not None and not isinstance(keyset, dict):
            raise TypeError("no key set")
        return Known(keyset, str(document["trust"]), sets)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FormatError(
            f"{where} is damaged: delete it, and pass the keys of {url} with --keyset FILE next time"
        ) from None


def learn(published: Published) -> None:
    """Remember the keys and the version of a trusted manifest. Raises `OSError` if they cannot be written."""
    if is_here(published.url):
        return
    where = path_of(published.url)
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with _alone(where.parent):
            before = recall(published.url)
            sets = dict(before.sets) if before else {}
            seen = {**sets.get(published.manifest.name, {})}
            seen[published.manifest.version] = published.manifest.digests.object
            sets[published.manifest.name] = {version: seen[version] for version in sorted(seen)[-VERSIONS:]}
            now = Known(published.keyset, published.trust, sets)
            if now != before:
                about = {"known_version": KNOWN_VERSION, "url": published.url, "keyset": now.keyset}
                text = json.dumps({**about, "trust": now.trust, "sets": now.sets}, indent=1)
                files.write(where, text.encode())
    except OSError as error:
        raise OSError(
            error.errno,
            f"the keys and versions of {published.url} cannot be saved ({error.strerror}): set XDG_STATE_HOME to a "
            "writable folder",
            str(where),
        ) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder, waiting for other writers."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
