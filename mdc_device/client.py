"""Fetching: the manifest, and a subset that survives broken connections, damaged bytes and restarts.

An interrupted fetch leaves FILE.part, and the next one goes on where it ends: whatever it holds (less, more,
another k, an older version) is checked rank by rank, and only what is wrong is fetched again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx

from mdc_core import rankmajor
from mdc_core.errors import DigestError, FormatError
from mdc_core.manifest import Manifest
from mdc_device import files, wire
from mdc_device.errors import UnreachableError

Report = Callable[[int, int], None]
"""Called with the bytes that are in place and the bytes of the whole file."""


@dataclass(frozen=True)
class Published:
    """A manifest as the server gave it."""

    set_name: str
    """What was asked for: the name of a set."""
    manifest: Manifest
    """What it says."""
    text: bytes
    """Its bytes, as they were served."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch did."""

    k: int
    """Size of the subset."""
    path: str
    """The file of the subset, verified."""
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
    """Of the file; verified."""

    def to_dict(self) -> dict[str, object]:
        """As JSON: field by field."""
        return {**asdict(self), "repaired_ranks": list(self.repaired_ranks)}


def fetch_manifest(http: httpx.Client, set_name: str) -> Published:
    """The manifest of a set. `FormatError` when it is damaged or has expired."""
    with wire.answer(http, f"v1/sets/{quote(set_name, safe='@')}/manifest") as response:
        text = response.read()
    manifest = files.decode_manifest(text, f"the manifest of {set_name!r}")
    if manifest.expires is not None and manifest.expires <= datetime.now(UTC):
        raise FormatError(
            f"the manifest of {set_name!r} expired at {manifest.expires.isoformat()}: publish the set "
            "again, or correct this device's clock"
        )
    return Published(set_name, manifest, text)


def fetch(
    http: httpx.Client, published: Published, k: int, target: Path, report: Report | None = None
) -> Fetched:
    """Bring subset k to the file `target`, verified, and its manifest beside it.

    Raises `UnreachableError` when the connection breaks without progress, `RefusedError` when the server
    refuses, `DigestError` when ranks are damaged even after they were fetched again.
    """
    manifest = published.manifest
    size = rankmajor.subset_size(manifest.info, k)
    if _is_there(manifest, k, target):
        files.write_atomically(files.manifest_of(target), published.text)
        return _result(published, k, target, received=0, resumed=size, repaired=())
    part = files.part_of(target)
    part.touch()
    with part.open("r+b") as file:
        file.truncate(min(_length(file), size))  # a larger k may have left more
        resumed = _length(file)
        received = _download(http, published, k, file, report)
        repaired = files.bad_ranks(file, k, manifest)
        received += _repair(http, published, k, file, repaired)
        files.sync(file)
    files.write_atomically(files.manifest_of(target), published.text)
    files.publish(part, target)
    return _result(published, k, target, received=received, resumed=resumed, repaired=repaired)


def _is_there(manifest: Manifest, k: int, target: Path) -> bool:
    """Whether the file already is this subset."""
    try:
        with target.open("rb") as file:
            files.check_whole(file, k, manifest)
    except (FileNotFoundError, DigestError):
        return False
    return True


def _download(http: httpx.Client, published: Published, k: int, file: BinaryIO, report: Report | None) -> int:
    """Fetch what the file lacks at its end; return the bytes received.

    A connection that breaks is opened again as long as each one brings the file forward.
    """
    size = rankmajor.subset_size(published.manifest.info, k)
    received = 0
    while (start := _length(file)) < size:
        broken: UnreachableError | None = None
        try:
            for count in _pieces(http, published, k, (start, size), file):
                received += count
                if report is not None:
                    report(file.tell(), size)
        except UnreachableError as error:
            broken = error
        if _length(file) <= start:
            raise UnreachableError(
                f"{broken or 'the server sent nothing'}; {start} of {size} bytes are kept, run the same "
                "command again to go on from there"
            )
    return received


def _repair(http: httpx.Client, published: Published, k: int, file: BinaryIO, damaged: Sequence[int]) -> int:
    """Fetch damaged ranks once more and write the header anew; return the bytes received."""
    manifest = published.manifest
    received = 0
    for first, last in _runs(damaged):
        start, end = (
            rankmajor.rank_range(manifest.info, first)[0],
            rankmajor.rank_range(manifest.info, last)[1],
        )
        received += sum(_pieces(http, published, k, (start, end), file))
    # The header follows from the manifest: what a smaller k or a bad line left of it needs no request.
    file.seek(0)
    file.write(rankmajor.header(manifest.info, k))
    if still := files.bad_ranks(file, k, manifest):
        raise DigestError(
            f"rank {', '.join(map(str, still))} of subset {k} of {published.set_name!r} came damaged twice: "
            "the server's copy or the connection is bad; tell whoever runs the server",
            still,
        )
    files.check_whole(file, k, manifest)
    return received


def _pieces(
    http: httpx.Client, published: Published, k: int, span: tuple[int, int], file: BinaryIO
) -> Iterator[int]:
    """Fetch bytes [start, end) of subset k to their place in the file, yielding the count of every piece."""
    info, digests = published.manifest.info, published.manifest.digests
    wanted = wire.Span(
        path=f"subsets/{k}",
        params={"set": published.set_name},
        etag=digests.subsets[k - 1],
        start=span[0],
        end=span[1],
        size=rankmajor.subset_size(info, k),
    )
    return wire.receive(http, wanted, file)


def _runs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of every run of consecutive ranks: one request each."""
    runs: list[tuple[int, int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1] = runs[-1][0], rank
        else:
            runs.append((rank, rank))
    return runs


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _result(
    published: Published, k: int, target: Path, *, received: int, resumed: int, repaired: tuple[int, ...]
) -> Fetched:
    return Fetched(
        k=k,
        path=str(target),
        manifest_path=str(files.manifest_of(target)),
        total_bytes=rankmajor.subset_size(published.manifest.info, k),
        received_bytes=received,
        resumed_from=resumed,
        repaired_ranks=repaired,
        sha256=published.manifest.digests.subsets[k - 1],
    )
