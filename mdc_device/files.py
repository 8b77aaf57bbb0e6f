"""Files on the device: what in them is damaged, and replacing them without ever leaving half a file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mdc_core import rankmajor
from mdc_core.errors import ConfigError, DigestError, FormatError
from mdc_core.manifest import Manifest, parse_manifest

BLOCK = 1 << 20


def part_of(path: Path) -> Path:
    """Where the file is while it is incomplete: FILE.part."""
    return path.with_name(path.name + ".part")


def manifest_of(path: Path) -> Path:
    """Where the manifest of the file is: FILE.manifest.json."""
    return path.with_name(path.name + ".manifest.json")


def length_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return file.seek(0, os.SEEK_END)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open to be changed in place by this process alone. `ConfigError` when another one is at it."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{path} is being changed by another process: wait for it to end") from None
        yield file


def load_manifest(path: Path) -> Manifest:
    """The manifest in a file. `FormatError` when it is none."""
    return decode_manifest(path.read_bytes(), str(path))


def decode_manifest(text: bytes, source: str) -> Manifest:
    """The manifest that these JSON bytes are; `source` names them in the `FormatError` when they are none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError(f"{source} is not JSON: fetch the manifest again") from None
    return parse_manifest(document)


def bad_ranks(file: BinaryIO, k: int, manifest: Manifest) -> tuple[int, ...]:
    """The ranks 1..k of an open file whose bytes are damaged or missing."""
    bad = []
    for r in range(1, k + 1):
        start, end = rankmajor.rank_range(manifest.info, r)
        file.seek(start)
        if rankmajor.sha256(file.read(end - start)) != manifest.digests.ranks[r - 1]:
            bad.append(r)
    return tuple(bad)


def check_whole(file: BinaryIO, k: int, manifest: Manifest) -> None:
    """Raise `DigestError` unless an open file is, to the byte, the file of subset k."""
    if digest_of(file) != manifest.digests.subsets[k - 1]:
        raise DigestError(
            f"the file is not subset {k} of {manifest.name!r} version {manifest.version}, "
            f"whose sha256 is {manifest.digests.subsets[k - 1]}: fetch it again"
        )


def digest_of(file: BinaryIO) -> str:
    """Hex sha256 of all of an open file."""
    state = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        state.update(block)
    return state.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`: after a crash it holds either all of it or what it held before."""
    part = part_of(path)
    with part.open("wb") as file:
        file.write(data)
        sync(file)
    publish(part, path)


def sync(file: BinaryIO) -> None:
    """Return when what was written to `file` is on the storage."""
    file.flush()
    os.fsync(file.fileno())


def publish(part: Path, path: Path) -> None:
    """Rename a synced file into place and return when the rename is on the storage."""
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
