"""Changing a fetched file in place, in an order that survives a crash between any two steps.

    grow     payload → check digests → fsync → header → fsync
    shrink   header → fsync → cut

So whatever a crash leaves, the header never promises a rank that is not on the storage: a file longer than its
header says is cut, one that is shorter or damaged is mended by fetching those ranks alone. Each function yields
the name of every step when it is done; a caller that stops in between leaves what a crash would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from mdc_core import rankmajor
from mdc_core.errors import DigestError, FormatError
from mdc_core.manifest import Manifest
from mdc_device import files

Fill = Callable[[int, int], None]
"""Brings bytes [start, end) of the subset to the same place of the file."""


def grow(file: BinaryIO, k: int, manifest: Manifest, fill: Fill) -> Iterator[str]:
    """Make an open file subset k by adding what it lacks; also mends it, when k is the size that it has.

    What an interrupted growth left behind the ranks that the header tells of is used: the digests decide. Every
    yield follows one step. Raises `DigestError` when ranks are damaged even after they were fetched again.
    """
    info = manifest.info
    end = rankmajor.subset_size(info, k)
    # A file cut inside its header lacks nothing of it: header(k) is written below.
    start = max(files.length_of(file), rankmajor.header_size(info))
    if start < end:
        fill(start, end)
    file.flush()
    yield "payload"
    for first, last in runs(files.bad_ranks(file, k, manifest)):
        fill(rankmajor.rank_range(info, first)[0], rankmajor.rank_range(info, last)[1])
    check_ranks(file, k, manifest)
    yield "digests checked"
    files.sync(file)
    yield "payload synced"
    _write_header(file, k, manifest)
    yield "header"
    files.sync(file)
    yield "header synced"
    if files.length_of(file) > end:
        yield from _cut(file, end)


def shrink(file: BinaryIO, k: int, manifest: Manifest) -> Iterator[str]:
    """Make an open file, which holds ranks 1..k, subset k. Every yield follows one step."""
    _write_header(file, k, manifest)
    yield "header"
    files.sync(file)
    yield "header synced"
    yield from _cut(file, rankmajor.subset_size(manifest.info, k))


def size_of(file: BinaryIO, manifest: Manifest, remembered: int | None = None) -> int:
    """The k that a file is, or was before it was damaged: as its header says, or else as remembered, or else by
    its length.
    """
    ipc = manifest.info.ipc
    try:
        info, k = rankmajor.read_header(_beginning(file))
        if info == manifest.info:
            return k
    except FormatError:
        pass
    if remembered is not None and 1 <= remembered <= ipc:
        return remembered
    payload = files.length_of(file) - rankmajor.header_size(manifest.info)
    return min(max(payload // manifest.info.rank_bytes, 1), ipc)


def check_ranks(file: BinaryIO, k: int, manifest: Manifest) -> None:
    """Raise `DigestError` unless the file holds the ranks 1..k of this set."""
    if bad := files.bad_ranks(file, k, manifest):
        raise DigestError(
            f"rank {', '.join(map(str, bad))} of subset {k} of {manifest.name!r} came damaged twice: the server's "
            "copy or the connection is bad; tell whoever runs the server",
            bad,
        )


def runs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of every run of consecutive ranks: one request each."""
    found: list[tuple[int, int]] = []
    for rank in ranks:
        if found and found[-1][1] == rank - 1:
            found[-1] = found[-1][0], rank
        else:
            found.append((rank, rank))
    return found


def _write_header(file: BinaryIO, k: int, manifest: Manifest) -> None:
    file.seek(0)
    file.write(rankmajor.header(manifest.info, k))
    file.flush()


def _cut(file: BinaryIO, end: int) -> Iterator[str]:
    file.truncate(end)
    yield "cut"
    files.sync(file)
    yield "cut synced"


def _beginning(file: BinaryIO) -> bytes:
    """The header of a file, or all of it when its length is no possible one."""
    file.seek(0)
    first = file.read(rankmajor.HEADER_STEP)
    length = int.from_bytes(first[:8], "little") + 8
    if len(first) < length <= files.length_of(file):
        file.seek(len(first))
        first += file.read(length - len(first))
    return first
