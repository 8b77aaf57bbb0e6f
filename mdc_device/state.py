"""What a device remembers about a fetched file: FILE.state.json. The file can be changed later by its name alone,
and a manifest older than the one seen, or altered on the storage, is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mdc_core import rankmajor
from mdc_core.errors import FormatError
from mdc_core.manifest import Manifest
from mdc_device import files
from mdc_device.errors import RollbackError

STATE_VERSION = 1


@dataclass(frozen=True)
class State:
    """What is remembered. `manifest_sha256` has two entries while the manifest is being replaced."""

    url: str
    """The server."""
    set_name: str
    """What was asked for: the name of a set."""
    version: int
    """Highest version of the manifest that was seen."""
    object_sha256: str
    """The set's object in that version."""
    k: int
    """Size of the subset when it was last changed."""
    manifest_sha256: tuple[str, ...]
    """Of the manifest beside the file."""
    keyset: Mapping[str, Any] | None
    """The pinned keys of the server, a JWKS; None: it does not sign."""


@dataclass(frozen=True)
class Published:
    """A manifest as the server gave it."""

    url: str
    """The server."""
    set_name: str
    """What was asked for: the name of a set."""
    manifest: Manifest
    """What it says."""
    text: bytes
    """Its bytes, as they were signed."""
    keyset: Mapping[str, Any] | None
    """The keys to be pinned, a JWKS; None: the server does not sign."""

    @property
    def reference(self) -> str:
        """NAME@VERSION: an address that always means these bytes, so that every cache may keep them."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def path(self, k: int) -> str:
        """Where subset k is, relative to the server's URL: written as the documentation does, for caches go by it."""
        return f"subsets/{k}?set={self.reference}"


def load(path: Path) -> State | None:
    """The state of the file, None when there is none. `FormatError` when it is damaged or of another version."""
    where = files.state_of(path)
    try:
        document = json.loads(where.read_bytes())
        if document.pop("state_version") != STATE_VERSION:
            raise FormatError(f"{where} is not of version {STATE_VERSION}: update this release")
        return _state(document)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{where} is damaged: delete it and fetch the set again") from None


def remember(path: Path, published: Published, k: int) -> None:
    """Put the manifest beside the file, and remember where it came from and that the file is subset k.

    At every moment of it the state accepts the manifest that is there, be it the old or the new one.
    """
    before = load(path)
    digest = rankmajor.sha256(published.text)
    now = State(
        url=published.url,
        set_name=published.set_name,
        version=published.manifest.version,
        object_sha256=published.manifest.digests.object,
        k=k,
        manifest_sha256=(digest,),
        keyset=published.keyset,
    )
    if before is not None and before.manifest_sha256 == (digest,):
        if before != now:
            _save(path, now)
    else:
        both = (digest, *(before.manifest_sha256 if before is not None else ()))
        _save(path, replace(now, manifest_sha256=tuple(dict.fromkeys(both))))
    _put_manifest(path, published.text)
    if load(path) != now:
        _save(path, now)


def remember_size(path: Path, k: int) -> None:
    """Remember that the file is now subset k, if anything is remembered about it."""
    if (before := load(path)) is not None and before.k != k:
        _save(path, replace(before, k=k))


def load_manifest(path: Path, state: State | None) -> Manifest:
    """The manifest beside the file. `FormatError` when it is damaged, or not the one that is remembered.

    `FileNotFoundError` when there is none.
    """
    where = files.manifest_of(path)
    try:
        text = where.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{where} is missing, so it is not known what {path} is: fetch it with `mdc-device fetch`"
        ) from None
    manifest = files.decode_manifest(text, str(where))
    if state is None or rankmajor.sha256(text) in state.manifest_sha256:
        return manifest
    if manifest.version < state.version:
        raise RollbackError(
            f"{where} is version {manifest.version}, but version {state.version} was here already: "
            "run `mdc-device verify --repair`"
        )
    raise FormatError(f"{where} has been altered since it was fetched: run `mdc-device verify --repair`")


def check_newer(state: State | None, published: Published) -> None:
    """Raise `RollbackError` when the server offers an older manifest of this set than has been seen."""
    if state is None or (state.url, state.set_name) != (published.url, published.set_name):
        return
    manifest = published.manifest
    if manifest.version < state.version:
        raise RollbackError(
            f"the server offers version {manifest.version} of {published.set_name!r}, but this device has seen "
            f"version {state.version}: something serves an old copy; try again later. If the newer one was withdrawn, "
            f"fetch {published.set_name.partition('@')[0]}@{manifest.version} to have the older one all the same"
        )
    if manifest.version == state.version and manifest.digests.object != state.object_sha256:
        raise RollbackError(
            f"the server offers another version {manifest.version} of {published.set_name!r} than the one this "
            "device has seen: if that is intended, remove the state file and fetch the set again"
        )


def _put_manifest(path: Path, text: bytes) -> None:
    where = files.manifest_of(path)
    if not where.exists() or where.read_bytes() != text:
        files.write_atomically(where, text)


def _save(path: Path, state: State) -> None:
    document = {"state_version": STATE_VERSION, **asdict(state)}
    files.write_atomically(files.state_of(path), json.dumps(document, indent=1).encode())


def _state(document: dict[str, Any]) -> State:
    """The state that these JSON values are; unknown ones are ignored. Raises what a damaged one makes it raise."""
    known = {field.name: document[field.name] for field in fields(State)}
    kinds = {"version": int, "k": int, "manifest_sha256": list, "keyset": dict | None}
    if any(not isinstance(value, kinds.get(name, str)) for name, value in known.items()):
        raise TypeError("a field has the wrong type")
    return State(**{**known, "manifest_sha256": tuple(known["manifest_sha256"])})
