"""Build the new file beside the old one, so that the file itself is a complete subset at every moment.

FILE.part is filled from local data (an interrupted run's, or the ranks of the file itself) and from the server. It is
checked while being written, synced to storage, and renamed. An interrupted run leaves FILE.part, and the next run
resumes from it. Whatever it holds (too little, too much, another k, another version) is checked rank by rank; only
wrong ranks are fetched again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import DigestError
from mdc_core.system import atomic_file
from mdc_device import files
from mdc_device.files import Scanner

Fill = Callable[[BinaryIO, int, int, Scanner | None], None]
"""Writes bytes [start, end) of the subset to the same position of an open file, feeding a scanner if there is one."""


class Assembled(NamedTuple):
    """Where the bytes of a part came from."""

    reused: int
    """Bytes that were there before."""
    repaired: tuple[int, ...]
    """Damaged ranks that were fetched again."""


def assemble(
    part: Path, k: int, manifest: Manifest, fill: Fill | None, seed: Path | None = None
) -> Assembled:
    """Make `part` exactly subset k, synced to storage. Ranks that the file `seed` has are copied.

    Every byte is hashed once, while it is read from the part or written to it. Raises `DigestError` if ranks are
    damaged even after a second fetch, or at all without a `fill`, and `OSError` if there is no space.
    """
    size = rankmajor.subset_size(manifest.info, k)
    part.touch()
    what = f"subset {k} of {manifest.name!r}, which has {size} bytes"
    with files.named(part, what), part.open("r+b") as file:
        file.truncate(min(files.length_of(file), size))  # a run for a larger k may have left more
        files.check_room(part.parent, size - files.length_of(file), f"subset {k} of {manifest.name!r}")
        if seed is not None or files.length_of(file) >= rankmajor.header_size(manifest.info):
            _write_header(file, k, manifest)  # the manifest determines it
        scanner = files.scan(file, k, manifest)
        if seed is not None:
            _copy(seed, file, size, scanner)
        reused = scanner.position
        if reused < size and fill is not None:
            fill(file, reused, size, scanner)
            file.flush()
            if scanner.position < size:  # pieces arrived out of order
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
        atomic_file.sync(file)
    return Assembled(reused, repaired)


def shrink(path: Path, k: int, manifest: Manifest) -> None:
    """Cut a file down to subset k; in place if there is no space for a second file.

    Raises `DigestError` if a remaining rank is damaged.
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
    atomic_file.publish(part, path)


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
        atomic_file.sync(
            file
        )  # header first: a file longer than its header says is still valid, a shorter one is lost
        file.truncate(end)
        atomic_file.sync(file)


def runs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """First and last rank of every run of consecutive ranks: each needs one request."""
    pairs: list[tuple[int, int]] = []
    for rank in ranks:
        if pairs and pairs[-1][1] == rank - 1:
            pairs[-1] = pairs[-1][0], rank
        else:
            pairs.append((rank, rank))
    return pairs


def _copy(seed: Path, file: BinaryIO, size: int, scanner: Scanner) -> None:
    """Append what the seed has beyond the end of the part, feeding the scanner. The seed's header has another k."""
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
    if not bad:  # ranks match but the whole does not: the manifest contradicts itself
        return DigestError(
            f"the file is not subset {k} of {manifest.name!r} version {manifest.version}, "
            f"whose sha256 is {manifest.digests.subsets[k - 1]}: fetch it again"
        )
    return DigestError(
        f"rank {', '.join(map(str, bad))} of subset {k} of {manifest.name!r} arrived damaged twice: the server's "
        "copy or the connection is bad; tell the server's operator",
        bad,
    )
