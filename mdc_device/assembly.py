"""Making a new file beside the old one: whatever happens, the file itself is a whole subset at every moment.

FILE.part grows from what is there already (an interrupted run's, or the ranks of the file itself) and from the server.
It is checked while it is written, put on the storage, and renamed. An interrupted run leaves FILE.part, and the next
one goes on where it ends: whatever it holds (less, more, another k, another version) is checked rank by rank, and only
what is wrong is fetched again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mdc_core.atomic_file import publish, sync
from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import DigestError
from mdc_device import files
from mdc_device.files import Scanner

Fill = Callable[[BinaryIO, int, int, Scanner | None], None]
"""Brings bytes [start, end) of the subset to the same place of an open file, past a scanner if there is one."""


class Assembled(NamedTuple):
    """What a part was made of."""

    kept: int
    """Bytes that were there before."""
    repaired: tuple[int, ...]
    """Ranks that were damaged, and have been fetched again."""


def assemble(
    part: Path, k: int, manifest: Manifest, fill: Fill | None, seed: Path | None = None
) -> Assembled:
    """Make `part` subset k, to the byte and on the storage; the ranks that the file `seed` has are copied.

    Every byte passes once, on its way from the seed or the server to the part; those that the part has are read.
    Raises `DigestError` when ranks are damaged even after they were fetched again, or without a `fill` at once, and
    `OSError` when there is no room.
    """
    size = rankmajor.subset_size(manifest.info, k)
    part.touch()
    what = f"subset {k} of {manifest.name!r}, which has {size} bytes"
    with files.named(part, what), part.open("r+b") as file:
        file.truncate(min(files.length_of(file), size))  # a larger k may have left more
        files.check_room(part.parent, size - files.length_of(file), f"subset {k} of {manifest.name!r}")
        if seed is not None or files.length_of(file) >= rankmajor.header_size(manifest.info):
            _write_header(file, k, manifest)  # it follows from the manifest
        scanner = files.scan(file, k, manifest)
        if seed is not None:
            _copy(seed, file, size, scanner)
        kept = scanner.position
        if kept < size and fill is not None:
            fill(file, kept, size, scanner)
            file.flush()
            if scanner.position < size:  # pieces came in another order than they lie
                scanner.read(file)
        repaired: tuple[int, ...] = ()
        if not scanner.is_right:
            repaired = scanner.bad_ranks
            if fill is not None:
                for first, last in runs(repaired):
                    start, _ = rankmajor.rank_range(manifest.info, first)
                    _, end = rankmajor.rank_range(manifest.info, last)
                    fill(file, start, end, None)
            elif repaired:
                raise _damaged(repaired)
            _write_header(file, k, manifest)
            scanner = files.scan(file, k, manifest)
        if not scanner.is_right:
            raise _damaged_twice(scanner.bad_ranks, k, manifest)
        sync(file)
    return Assembled(kept, repaired)


def shrink(path: Path, k: int, manifest: Manifest) -> None:
    """Make a file subset k of the ranks that it has; where there is no room for another file, in place.

    Raises `DigestError` when a rank that would stay is damaged.
    """
    part = files.part_of(path)
    part.unlink(missing_ok=True)
    try:
        try:
            assemble(part, k, manifest, None, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            part.unlink(missing_ok=True)
            _cut(path, k, manifest)
            return
    except DigestError as error:
        part.unlink(missing_ok=True)
        raise DigestError(f"{path}: {error}; run `mdc-device verify --repair` first", error.ranks) from None
    publish(part, path)


def _cut(path: Path, k: int, manifest: Manifest) -> None:
    """Shrink in place."""
    end = rankmajor.subset_size(manifest.info, k)
    with path.open("r+b") as file:
        scanner = Scanner(k, manifest)
        scanner.update(rankmajor.header(manifest.info, k))
        scanner.read(file, end)
        if bad := scanner.bad_ranks:
            raise _damaged(bad)
        _write_header(file, k, manifest)
        sync(file)  # a longer file than its header says can be cut, a shorter one is lost
        file.truncate(end)
        sync(file)


def runs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of every run of consecutive ranks: one request each."""
    found: list[tuple[int, int]] = []
    for rank in ranks:
        if found and found[-1][1] == rank - 1:
            found[-1] = found[-1][0], rank
        else:
            found.append((rank, rank))
    return found


def _copy(seed: Path, file: BinaryIO, size: int, scanner: Scanner) -> None:
    """What the seed has behind the end of the part, past the scanner; its header is of another size."""
    with seed.open("rb") as source:
        source.seek(scanner.position)
        file.seek(scanner.position)
        while block := source.read(min(files.BLOCK, size - scanner.position)):
            scanner.update(block)
            file.write(block)
    file.flush()


def _write_header(file: BinaryIO, k: int, manifest: Manifest) -> None:
    file.seek(0)
    file.write(rankmajor.header(manifest.info, k))
    file.flush()


def _damaged(bad: tuple[int, ...]) -> DigestError:
    return DigestError(f"rank {', '.join(map(str, bad))} is damaged or missing", bad)


def _damaged_twice(bad: tuple[int, ...], k: int, manifest: Manifest) -> DigestError:
    if not bad:  # the manifest contradicts itself
        return DigestError(
            f"the file is not subset {k} of {manifest.name!r} version {manifest.version}, "
            f"whose sha256 is {manifest.digests.subsets[k - 1]}: fetch it again"
        )
    return DigestError(
        f"rank {', '.join(map(str, bad))} of subset {k} of {manifest.name!r} came damaged twice: the server's "
        "copy or the connection is bad; tell whoever runs the server",
        bad,
    )
