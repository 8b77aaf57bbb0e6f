"""What a device remembers about a fetched file: FILE.state.json.

With it, the file can later be changed by name alone, and a manifest that is older or was altered locally is detected.
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
    """The state of a file. `manifest_sha256` has two entries while the manifest is being replaced."""

    url: str
    """The server."""
    set_name: str
    """The set's name as requested."""
    version: int
    """Highest version of the manifest seen."""
    object_sha256: str
    """Digest of the set's object in that version."""
    k: int
    """Size of the subset when it was last changed."""
    manifest_sha256: tuple[str, ...]
    """Digests of the manifest beside the file."""
    keyset: Mapping[str, Any] | None
    """The server's pinned keys, a JWKS; None if it does not sign."""
    trust: str
    """Where these keys came from; see `mdc_device.trust`."""


@dataclass(frozen=True)
class Published:
    """A manifest as the server published it."""

    url: str
    """The server."""
    set_name: str
    """The set's name as requested."""
    manifest: Manifest
    """The parsed manifest."""
    text: bytes
    """Its bytes, as signed."""
    keyset: Mapping[str, Any] | None
    """The keys to pin, a JWKS; None if the server does not sign."""
    trust: str
    """Where these keys came from."""

    @property
    def reference(self) -> str:
        """NAME@VERSION: it always means the same bytes, so caches may keep them forever."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def path(self, k: int) -> str:
        """The path of subset k below the server's URL, spelled as documented, because caches compare it literally."""
        return f"subsets/{k}?set={self.reference}"


def load(path: Path) -> State | None:
    """The file's state, None if there is none. Raises `FormatError` if it is damaged or of another version."""
    where = files.state_of(path)
    try:
        document = json.loads(where.read_bytes())
        if document.pop("state_version") != STATE_VERSION:
            raise FormatError(f"{where} has another version than {STATE_VERSION}: update mdc-device")
        return _state(document)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{where} is damaged: delete it and fetch the set again") from None


def remember(path: Path, published: Published, k: int) -> None:
    """Write the manifest beside the file, and the state: where it came from, and that the file is subset k.

    Throughout, the state accepts the manifest in place, old or new, so a crash at any point does no harm.
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
    """Update the state, if there is one: the file is now subset k."""
    if (before := load(path)) is not None and before.k != k:
        _save(path, replace(before, k=k))


def load_manifest(path: Path, state: State | None) -> Manifest:
    """The manifest beside the file.

    Raises `FormatError` if it is damaged or not the remembered one, and `FileNotFoundError` if there is none.
    """
    where = files.manifest_of(path)
    try:
        text = where.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{where} is missing, so {path} cannot be checked: fetch it with `mdc-device fetch`"
        ) from None
    manifest = files.decode_manifest(text, str(where))
    if state is None or rankmajor.sha256(text) in state.manifest_sha256:
        return manifest
    if manifest.version < state.version:
        raise RollbackError(
            f"{where} is version {manifest.version}, but version {state.version} was here before: "
            "run `mdc-device verify --repair`"
        )
    raise FormatError(f"{where} has been altered since it was fetched: run `mdc-device verify --repair`")


def check_newer(seen: Mapping[int, str], published: Published, version: int | None) -> None:
    """Raise `RollbackError` if the manifest is older than one `seen`, or differs from it under the same version.

    `seen` maps versions to the sha256 of their objects. An explicitly requested `version` may be old.
    """
    manifest = published.manifest
    newest = max(seen, default=0)
    if version is None and manifest.version < newest:
        raise RollbackError(
            f"the server offers version {manifest.version} of {manifest.name!r}, but this device has seen "
            f"version {newest}: a cache serves an old copy; try again later. If the newer version was withdrawn, "
            f"fetch {published.reference} to get the older one anyway"
        )
    if seen.get(manifest.version, manifest.digests.object) != manifest.digests.object:
        raise RollbackError(
            f"the server's version {manifest.version} of {manifest.name!r} differs from the one this device has seen. "
            f"If the server was reinstalled, remove {known_servers.path_of(published.url)} and the FILE.state.json of "
            "each of its files, and fetch the set again"
        )


def _put_manifest(path: Path, text: bytes) -> None:
    where = files.manifest_of(path)
    if not where.exists() or where.read_bytes() != text:
        files.write(where, text)


def _save(path: Path, state: State) -> None:
    document = {"state_version": STATE_VERSION, **asdict(state)}
    files.write(files.state_of(path), json.dumps(document, indent=1).encode())


def _state(document: dict[str, Any]) -> State:
    """Parse a state from JSON values, ignoring unknown ones. A damaged one raises whatever it provokes."""
    document.setdefault(
        "trust", trust.at_first_use(document["url"], document["keyset"])
    )  # from older releases
    known = {field.name: document[field.name] for field in fields(State)}
    kinds = {"version": int, "k": int, "manifest_sha256": list, "keyset": dict | None}
    if any(not isinstance(value, kinds.get(name, str)) for name, value in known.items()):
        raise TypeError("a field has the wrong type")
    return State(**{**known, "manifest_sha256": tuple(known["manifest_sha256"])})
