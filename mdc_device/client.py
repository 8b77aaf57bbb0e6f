"""Fetch the manifest and a subset, despite broken connections, damaged bytes and restarts.

`mdc_device.assembly` puts the file together.
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

from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import FormatError
from mdc_core.system import atomic_file
from mdc_device import files, known_servers, state, trust, wire
from mdc_device.assembly import assemble
from mdc_device.backoff import Backoff
from mdc_device.errors import RefusedError, UnreachableError
from mdc_device.files import Scanner
from mdc_device.state import Published, State

CLOCK_SLACK = timedelta(hours=1)
"""How much clocks may differ."""
Report = Callable[[int, int], None]
"""Called with the bytes in place and the bytes of the whole file."""


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
    """Bytes received over the network."""
    resumed_from: int
    """Bytes that were there before."""
    repaired_ranks: tuple[int, ...]
    """Damaged ranks that were fetched again."""
    sha256: str
    """Digest of the file; it matches the manifest."""
    trust: str
    """Where the keys that signed the manifest came from; see `mdc_device.trust`."""

    @property
    def verified(self) -> bool:
        """Whether the matching digests prove who made the bytes."""
        return self.trust in trust.VOUCHED

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON."""
        return {**asdict(self), "repaired_ranks": list(self.repaired_ranks), "verified": self.verified}


@dataclass(frozen=True)
class Link:
    """An open connection and its settings."""

    http: httpx.Client
    access: wire.Access

    @classmethod
    @contextmanager
    def to(cls, url: str, access: wire.Access) -> Iterator[Link]:
        """Connect to the server at `url`; the link is closed on exit."""
        with wire.connect(url, access) as http:
            yield cls(http, access)


def fetch_manifest(
    link: Link, set_name: str, remembered: State | None = None, version: int | None = None
) -> Published:
    """Fetch the manifest of a set and check that it can be trusted.

    `remembered` is the state of a file fetched before. Without a `version`, the one in `set_name` (NAME@VERSION) is
    fetched, else the latest.

    Raises `FormatError` if the manifest is damaged, has expired or belongs to another set; `SignatureError` if it is
    not signed by the pinned keys, or the server's; and `RollbackError` if it is older than the one seen.
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
    check_current(manifest, "a cache between this device and the server keeps old copies; try again later")
    published = Published(url, set_name, manifest, *opened)
    wanted = number if version is None else str(version)
    if manifest.name != name or (wanted and wanted != str(manifest.version)):
        raise FormatError(
            f"the manifest of {reference!r} was requested, but that of {published.reference!r} arrived: a proxy "
            "between this device and the server mixes up responses; try another connection"
        )
    state.check_newer(seen, published, manifest.version if wanted else None)
    known_servers.learn(published)
    return published


def _known(url: str, name: str, remembered: State | None) -> tuple[trust.Keyset | None, str, dict[int, str]]:
    """The pinned keys of a server, their origin, and the seen versions of a set.

    What the whole device knows takes precedence over what is `remembered` for one file.
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
    manifest: Manifest, advice: str = "run `mdc-device verify --repair FILE` to get a current one"
) -> None:
    """Raise `FormatError`, with the advice, if the manifest has expired."""
    if is_expired(manifest):
        assert manifest.expires is not None
        raise FormatError(
            f"the manifest of {manifest.name!r} expired at {manifest.expires.isoformat()}: {advice}, or correct this "
            "device's clock"
        )


def now() -> datetime:
    """The time on this device's clock."""
    return datetime.now(UTC)


def is_expired(manifest: Manifest) -> bool:
    """Whether the manifest has expired and must not be used."""
    return manifest.expires is not None and manifest.expires <= now()


def is_clock_behind(manifest: Manifest) -> bool:
    """Whether this device's clock is earlier than the manifest's creation, so that expiry goes unnoticed."""
    return manifest.created > now() + CLOCK_SLACK


def fetch(link: Link, published: Published, k: int, target: Path, report: Report | None = None) -> Fetched:
    """Fetch subset k to the file `target`, verify it, and write its manifest and state beside it.

    Ranks that an existing `target` of this version has are not fetched again. Raises `UnreachableError` if the
    connection keeps breaking without progress, `RefusedError` if the server refuses, and `DigestError` if ranks are
    damaged even after a second fetch.
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
    """Make `target` subset k, from the ranks that `seed` has and from the server."""
    part = files.part_of(target)
    source = Source(link, published, k, report)
    made = assemble(part, k, published.manifest, source.fill, seed)
    state.remember(target, published, k)
    atomic_file.publish(part, target)
    return result(published, k, target, received=source.received, resumed=made.reused, repaired=made.repaired)


@dataclass
class Source:
    """Fetches the bytes of subset k and counts them."""

    link: Link
    published: Published
    k: int
    report: Report | None = None
    received: int = 0
    """Bytes received over the network."""

    def fill(self, file: BinaryIO, start: int, end: int, scanner: Scanner | None) -> None:
        """Fetch bytes [start, end) to their position in the file, over as many connections as needed.

        After a broken connection, it waits and resumes where the connection broke.
        """
        backoff = Backoff(self.link.access.retries)
        while start < end:
            before = start
            try:
                self._receive(file, start, end, scanner)
                failure: UnreachableError | RefusedError = UnreachableError(
                    f"{self.link.http.base_url} ended its response early"
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
                        f"{error}; {start} of {size} bytes are kept, run the same command again to resume"
                    ) from error

    def _receive(self, file: BinaryIO, start: int, end: int, scanner: Scanner | None) -> None:
        """Send one request, and write what arrives."""
        info = self.published.manifest.info
        span = wire.Span(
            path=self.published.path(self.k),
            etag=self.published.manifest.digests.subsets[self.k - 1],
            start=start,
            end=end,
            size=rankmajor.subset_size(info, self.k),
        )
        self._at = start
        for count in wire.receive(self.link.http, span, file, scanner):
            self.received += count
            self._at = max(start, file.tell())
            if self.report is not None:
                self.report(self._at, span.size)


def _is_there(manifest: Manifest, k: int, target: Path) -> bool:
    """Whether the file is already this subset."""
    try:
        with target.open("rb") as file:
            # The length is checked first: a file of another length need not be read.
            return files.length_of(file) == rankmajor.subset_size(manifest.info, k) and (
                files.scan(file, k, manifest).is_right
            )
    except FileNotFoundError:
        return False


def result(
    published: Published, k: int, target: Path, *, received: int, resumed: int, repaired: tuple[int, ...]
) -> Fetched:
    """The result for a file `target` that is now subset k."""
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
