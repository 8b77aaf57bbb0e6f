"""What a device remembers about a fetched file: FILE.state.json. The file can be changed later by its name alone,
and a manifest older than the one seen, or altered on the storage, is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import FormatError
from mdc_device import files, known_servers, trust
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
    trust: str
    """Where these keys came from; see `mdc_device.trust`."""


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
    trust: str
    """Where these keys came from."""

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
        trust=published.trust,
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


def check_newer(seen: Mapping[int, str], published: Published, version: int | None) -> None:
    """Raise `RollbackError` for an older manifest of a set than was `seen` (versions and sha256 of their objects), and
    for another one under the same version. Who asked for a `version` may have an old one.
    """
    manifest = published.manifest
    newest = max(seen, default=0)
    if version is None and manifest.version < newest:
        raise RollbackError(
            f"the server offers version {manifest.version} of {manifest.name!r}, but this device has seen "
            f"version {newest}: something serves an old copy; try again later. If the newer one was withdrawn, "
            f"fetch {published.reference} to have the older one all the same"
        )
    if seen.get(manifest.version, manifest.digests.object) != manifest.digests.object:
        raise RollbackError(
            f"the server offers another version {manifest.version} of {manifest.name!r} than the one this device has "
            f"seen: if it was set up anew, remove {known_servers.path_of(published.url)} and the FILE.state.json of "
            "each file from it, and fetch the set again"
        )


def _put_manifest(path: Path, text: bytes) -> None:
    where = files.manifest_of(path)
    if not where.exists() or where.read_bytes() != text:
        files.write(where, text)


def _save(path: Path, state: State) -> None:
    document = {"state_version": STATE_VERSION, **asdict(state)}
    files.write(files.state_of(path), json.dumps(document, indent=1).encode())


def _state(document: dict[str, Any]) -> State:
    """The state that these JSON values are; unknown ones are ignored. Raises what a damaged one makes it raise."""
    document.setdefault("trust", trust.at_first_use(document["url"], document["keyset"]))  # of older releases
    known = {field.name: document[field.name] for field in fields(State)}
    kinds = {"version": int, "k": int, "manifest_sha256": list, "keyset": dict | None}
    if any(not isinstance(value, kinds.get(name, str)) for name, value in known.items()):
        raise TypeError("a field has the wrong type")
    return State(**{**known, "manifest_sha256": tuple(known["manifest_sha256"])})
