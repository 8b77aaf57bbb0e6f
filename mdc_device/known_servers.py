"""What this device has seen of servers, for all of its files: their keys, and the versions of their sets.

One file for each server, in the folder `mdc-device` of XDG_STATE_HOME or else of ~/.local/state. So an old manifest is
refused wherever its subset is to be, and the keys that were pinned for one file hold for the next.

A server on this machine is not among them, for what answers at such an address changes: a service that is set up anew,
the end of a tunnel. It is remembered beside each file alone.
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
"""Most versions of one set that are remembered: the newest ones."""


@dataclass(frozen=True)
class Known:
    """One server."""

    keyset: Mapping[str, Any] | None
    """Its pinned keys, a JWKS; None: it did not sign."""
    trust: str
    """Where they came from; see `mdc_device.trust`."""
    sets: Mapping[str, Mapping[int, str]]
    """By name of a set: the versions that were seen, and the sha256 of the object of each."""


def path_of(url: str) -> Path:
    """Where the server at `url` is remembered."""
    state_home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state_home) if os.path.isabs(state_home) else Path(os.path.expanduser("~/.local/state"))
    host = re.sub(r"[^a-z0-9.-]", "_", (urlsplit(url).hostname or "").lower())[:100]
    return base / "mdc-device" / f"{host}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"


def recall(url: str) -> Known | None:
    """What has been seen of the server at `url`; None: nothing, or it is on this machine.

    Raises `FormatError` when the file about it is damaged.
    """
    if is_here(url):
        return None
    where = path_of(url)
    try:
        document = json.loads(where.read_bytes())
        if document["known_version"] != KNOWN_VERSION:
            raise FormatError(f"{where} is not of version {KNOWN_VERSION}: update this release")
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
            f"{where} is damaged: delete it, and give the keys of {url} as --keyset FILE next time"
        ) from None


def learn(published: Published) -> None:
    """Remember what a manifest that was believed tells of its server. `OSError` when it cannot be written."""
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
            f"what was seen of {published.url} cannot be remembered ({error.strerror}): set XDG_STATE_HOME to a folder "
            "that can be written",
            str(where),
        ) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for the processes that write there."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
