"""Fetching: the manifest, and a subset that survives broken connections, damaged bytes and restarts.

How the file is put together is told in `mdc_device.assembly`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx

from mdc_core.atomic_file import publish
from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import FormatError
from mdc_device import files, known_servers, state, trust, wire
from mdc_device.assembly import assemble
from mdc_device.backoff import Backoff
from mdc_device.errors import RefusedError, UnreachableError
from mdc_device.files import Scanner
from mdc_device.state import Published, State

CLOCK_SLACK = timedelta(hours=1)
"""By how much clocks may differ."""
Report = Callable[[int, int], None]
"""Called with the bytes that are in place and the bytes of the whole file."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch did."""

    k: int
    """Size of the subset."""
    path: str
    """The file of the subset."""
    manifest_path: str
    """Its manifest."""
    total_bytes: int
    """Bytes of the file."""
    received_bytes: int
    """Bytes of it that came over the network."""
    resumed_from: int
    """Bytes that were there before."""
    repaired_ranks: tuple[int, ...]
    """Ranks that were damaged and have been fetched again."""
    sha256: str
    """Of the file; the one that the manifest promises."""
    trust: str
    """Where the keys came from that vouch for the manifest; see `mdc_device.trust`."""

    @property
    def verified(self) -> bool:
        """Whether the digests, which are right, tell who made the bytes."""
        return self.trust in trust.VOUCHED

    def to_dict(self) -> dict[str, object]:
        """As JSON: field by field."""
        return {**asdict(self), "repaired_ranks": list(self.repaired_ranks), "verified": self.verified}


@dataclass(frozen=True)
class Link:
    """An open connection, and what this device expects of it."""

    http: httpx.Client
    access: wire.Access

    @classmethod
    @contextmanager
    def to(cls, url: str, access: wire.Access) -> Iterator[Link]:
        """A link to the server at `url`, closed at the end."""
        with wire.connect(url, access) as http:
            yield cls(http, access)


def fetch_manifest(
    link: Link, set_name: str, remembered: State | None = None, version: int | None = None
) -> Published:
    """The manifest of a set, if it is to be trusted after all that is `remembered` of a file that was fetched before.

    Without a `version` it is the one that `set_name` names, or else the latest. Raises `FormatError` when it is
    damaged, has expired or is of another set, `SignatureError` when it is not signed by the keys of the server, or
    those that are pinned, and `RollbackError` when it is older than the one seen.
    """
    url = str(link.http.base_url).rstrip("/")
    name, _, number = set_name.partition("@")
    reference = set_name if version is None else f"{name}@{version}"
    pinned, how, seen = _known(url, name, remembered)
    path = f"v1/sets/{quote(reference, safe='@')}/manifest"
    backoff = Backoff(link.access.retries)
    while True:
        try:
            with wire.answer(link.http, path, headers={"Accept": trust.ACCEPT}) as response:
                body, media_type = wire.small_body(response), response.headers.get("Content-Type", "")
            opened = trust.opened(link.http, body, media_type, link.access, pinned, how)
            break
        except (UnreachableError, RefusedError) as error:
            backoff.wait_or_raise(error)
    manifest = files.decode_manifest(opened.text, f"the manifest of {set_name!r}")
    check_current(manifest, "something between this device and the server keeps old copies; try again later")
    published = Published(url, set_name, manifest, *opened)
    wanted = number if version is None else str(version)
    if manifest.name != name or (wanted and wanted != str(manifest.version)):
        raise FormatError(
            f"the server was asked for {reference!r}, but sent the manifest of {published.reference!r}: something "
            "between this device and the server mixes up what is delivered"
        )
    state.check_newer(seen, published, manifest.version if wanted else None)
    known_servers.learn(published)
    return published


def _known(url: str, name: str, remembered: State | None) -> tuple[trust.Keyset | None, str, dict[int, str]]:
    """The pinned keys of a server, where they came from, and the versions of a set that were seen; what holds for the
    whole device counts more than what is `remembered` of one file.
    """
    keyset, how, seen = None, trust.UNSIGNED, {}
    if remembered is not None and remembered.url == url:
        keyset, how = remembered.keyset, remembered.trust
        if remembered.set_name.partition("@")[0] == name:
            seen[remembered.version] = remembered.object_sha256
    if (known := known_servers.recall(url)) is not None:
        seen |= known.sets.get(name, {})
        if known.keyset is not None:
            keyset, how = known.keyset, known.trust
    return keyset, how, seen


def check_current(
    manifest: Manifest, advice: str = "run `mdc-device verify --repair FILE` for a current one"
) -> None:
    """Raise `FormatError`, with the advice, when the manifest has expired."""
    if is_expired(manifest):
        assert manifest.expires is not None
        raise FormatError(
            f"the manifest of {manifest.name!r} expired at {manifest.expires.isoformat()}: {advice}, or correct this "
            "device's clock"
        )


def now() -> datetime:
    """What this device's clock tells."""
    return datetime.now(UTC)


def is_expired(manifest: Manifest) -> bool:
    """Whether the manifest must not be used any more."""
    return manifest.expires is not None and manifest.expires <= now()


def is_clock_behind(manifest: Manifest) -> bool:
    """Whether this device's clock is before the time at which the manifest was made: then no expiry is noticed."""
    return manifest.created > now() + CLOCK_SLACK


def fetch(link: Link, published: Published, k: int, target: Path, report: Report | None = None) -> Fetched:
    """Bring subset k to the file `target`, verified, and its manifest and state beside it.

    Ranks that an older `target` of this version has are not fetched again. Raises `UnreachableError` when the
    connection keeps breaking without progress, `RefusedError` when the server refuses, `DigestError` when ranks are
    damaged even after they were fetched again.
    """
    manifest = published.manifest
    size = rankmajor.subset_size(manifest.info, k)
    if _is_there(manifest, k, target):
        state.remember(target, published, k)
        return result(published, k, target, received=0, resumed=size, repaired=())
    before = state.load(target)
    has_ranks = target.exists() and target.stat().st_size > rankmajor.header_size(manifest.info)
    is_same = before is not None and before.object_sha256 == manifest.digests.object
    return change(link, published, k, target, report, seed=target if has_ranks and is_same else None)


def change(
    link: Link, published: Published, k: int, target: Path, report: Report | None, *, seed: Path | None
) -> Fetched:
    """Make `target` subset k of the ranks that `seed` has and those that the server gives."""
    part = files.part_of(target)
    source = Source(link, published, k, report)
    made = assemble(part, k, published.manifest, source.fill, seed)
    state.remember(target, published, k)
    publish(part, target)
    return result(published, k, target, received=source.received, resumed=made.kept, repaired=made.repaired)


@dataclass
class Source:
    """Where the bytes of subset k come from, and how many came."""

    link: Link
    published: Published
    k: int
    report: Report | None = None
    received: int = 0
    """Bytes that came over the network."""

    def fill(self, file: BinaryIO, start: int, end: int, scanner: Scanner | None) -> None:
        """Fetch bytes [start, end) to their place in the file, across as many connections as it takes.

        A connection that breaks is opened again where it broke, after a wait.
        """
        backoff = Backoff(self.link.access.retries)
        while start < end:
            before = start
            try:
                self._receive(file, start, end, scanner)
                failure: UnreachableError | RefusedError = UnreachableError(
                    f"{self.link.http.base_url} ended its answer early"
                )
            except (UnreachableError, RefusedError) as error:
                failure = error
            start = self._at
            if start < end:
                try:
                    backoff.wait_or_raise(failure, progressed=start > before)
                except UnreachableError as error:
                    size = rankmajor.subset_size(self.published.manifest.info, self.k)
                    raise UnreachableError(
                        f"{error}; {start} of {size} bytes are kept, run the same command again to go on from there"
                    ) from error

    def _receive(self, file: BinaryIO, start: int, end: int, scanner: Scanner | None) -> None:
        """One request."""
        info = self.published.manifest.info
        wanted = wire.Span(
            path=self.published.path(self.k),
            etag=self.published.manifest.digests.subsets[self.k - 1],
            start=start,
            end=end,
            size=rankmajor.subset_size(info, self.k),
        )
        self._at = start
        for count in wire.receive(self.link.http, wanted, file, scanner):
            self.received += count
            self._at = max(start, file.tell())
            if self.report is not None:
                self.report(self._at, wanted.size)


def _is_there(manifest: Manifest, k: int, target: Path) -> bool:
    """Whether the file already is this subset."""
    try:
        with target.open("rb") as file:
            # Another length is another file: its bytes need not be read to know it.
            return files.length_of(file) == rankmajor.subset_size(manifest.info, k) and (
                files.scan(file, k, manifest).is_right
            )
    except FileNotFoundError:
        return False


def result(
    published: Published, k: int, target: Path, *, received: int, resumed: int, repaired: tuple[int, ...]
) -> Fetched:
    """What was done to bring the file `target` to subset k."""
    return Fetched(
        k=k,
        path=str(target),
        manifest_path=str(files.manifest_of(target)),
        total_bytes=rankmajor.subset_size(published.manifest.info, k),
        received_bytes=received,
        resumed_from=resumed,
        repaired_ranks=repaired,
        sha256=published.manifest.digests.subsets[k - 1],
        trust=published.trust,
    )
