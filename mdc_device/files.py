"""Files on the device: finding damage, locking, and replacing files atomically."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest, parse_manifest
from mdc_core.errors import FormatError
from mdc_core.system.atomic_file import write_atomically
from mdc_device.errors import BusyError

BLOCK = 1 << 20
BRIEFLY_S = 0.1
"""How long to wait for a lock, in seconds."""


def part_of(path: Path) -> Path:
    """The incomplete file: FILE.part."""
    return path.with_name(path.name + ".part")


def manifest_of(path: Path) -> Path:
    """The file's manifest: FILE.manifest.json."""
    return path.with_name(path.name + ".manifest.json")


def all_of(path: Path) -> tuple[Path, ...]:
    """The file of a subset and every file that may lie beside it."""
    return path, part_of(path), manifest_of(path), state_of(path), lock_of(path)


def part_bytes(path: Path) -> int:
    """Bytes of FILE.part; 0 if there is none."""
    try:
        return part_of(path).stat().st_size
    except FileNotFoundError:
        return 0


def state_of(path: Path) -> Path:
    """The file's state: FILE.state.json."""
    return path.with_name(path.name + ".state.json")


def length_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return file.seek(0, os.SEEK_END)


def lock_of(path: Path) -> Path:
    """The lock that processes hold while they use the file: FILE.lock. The last one removes it."""
    return path.with_name(path.name + ".lock")


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock the file and what lies beside it; any number of readers may hold a `shared` lock at once.

    Raises:
        BusyError: another process uses the file.
    """
    try:
        handle = _locked_file(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        if shared and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # nobody can change the file
            yield
            return
        raise
    try:
        yield
    finally:
        # Only a sole holder may remove the lock file; others check that the one they locked is still in place.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, lock_of(path)):
                lock_of(path).unlink()
        os.close(handle)


def _locked_file(path: Path, kind: int) -> int:
    deadline = time.monotonic() + BRIEFLY_S
    while True:
        handle = os.open(lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if (
                time.monotonic() < deadline
            ):  # a finishing reader locks exclusively for a moment, to remove the file
                time.sleep(BRIEFLY_S / 20)
                continue
            raise BusyError(
                f"another process is reading or changing {path}: nothing was done; try again when it has ended"
            ) from None
        if _is_at(handle, lock_of(path)):
            return handle
        os.close(handle)  # its last user has just removed it


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


class Scanner:
    """Hashes the file of subset k and its ranks in one pass over its bytes."""

    def __init__(self, k: int, manifest: Manifest) -> None:
        """Start before the first byte."""
        self._k, self._manifest = k, manifest
        self._ends = [rankmajor.header_size(manifest.info)]
        self._ends += [rankmajor.subset_size(manifest.info, r) for r in range(1, k + 1)]
        self._whole = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._pieces: list[str] = []
        self.position = 0
        """Bytes hashed so far."""

    def update(self, data: bytes | memoryview) -> None:
        """Hash the next bytes. Bytes beyond the end of subset k only change the digest of the whole."""
        self._whole.update(data)
        view = memoryview(data)
        while view and len(self._pieces) < len(self._ends):
            part = view[: self._ends[len(self._pieces)] - self.position]
            self._piece.update(part)
            self.position += len(part)
            view = view[len(part) :]
            if self.position == self._ends[len(self._pieces)]:
                self._pieces.append(self._piece.hexdigest())
                self._piece = hashlib.sha256()
        self.position += len(view)

    def read(self, file: BinaryIO, end: int | None = None) -> None:
        """Hash the rest of an open file, from `position` to byte `end` (default: to its end)."""
        file.seek(self.position)
        while block := file.read(BLOCK if end is None else min(BLOCK, end - self.position)):
            self.update(block)

    @property
    def digest(self) -> str:
        """Hex sha256 of all bytes so far."""
        return self._whole.hexdigest()

    @property
    def is_right(self) -> bool:
        """Whether the bytes were exactly the file of subset k."""
        return self.digest == self._manifest.digests.subsets[self._k - 1]

    @property
    def bad_ranks(self) -> tuple[int, ...]:
        """The ranks 1..k that are damaged or missing."""
        expected = self._manifest.digests.ranks
        actual = self._pieces[1:]
        return tuple(r for r in range(1, self._k + 1) if actual[r - 1 : r] != [expected[r - 1]])


def scan(file: BinaryIO, k: int, manifest: Manifest) -> Scanner:
    """Hash an open file that should be subset k; reads it once."""
    scanner = Scanner(k, manifest)
    scanner.read(file)
    return scanner


def size_of(file: BinaryIO, manifest: Manifest, remembered: int | None = None) -> int:
    """The k of a file, even if it is damaged: from its header, else as remembered, else from its length."""
    ipc = manifest.info.ipc
    try:
        info, k = rankmajor.read_header(beginning_of(file))
        if info == manifest.info:
            return k
    except FormatError:
        pass
    if remembered is not None and 1 <= remembered <= ipc:
        return remembered
    payload = length_of(file) - rankmajor.header_size(manifest.info)
    return min(max(payload // manifest.info.rank_bytes, 1), ipc)


def beginning_of(file: BinaryIO) -> bytes:
    """The header of a file, or its first bytes if they state an impossible length."""
    file.seek(0)
    first = file.read(rankmajor.HEADER_STEP)
    length = int.from_bytes(first[:8], "little") + 8
    if len(first) < length <= length_of(file):
        file.seek(len(first))
        first += file.read(length - len(first))
    return first


def check_room(folder: Path, wanted: int, what: str) -> None:
    """Raise `OSError` unless the folder has space for `wanted` bytes."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} needs {wanted} more bytes, but only {free} are free: free some space",
            str(folder),
        )


@contextmanager
def named(path: Path, what: str) -> Iterator[None]:
    """Add the file and its intended content to the `OSError` of a failed write; the system leaves them out."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"{error.strerror}, writing {what}", str(path)) from None


def load_manifest(path: Path) -> Manifest:
    """Read the manifest in a file. Raises `FormatError` if it is none."""
    return decode_manifest(path.read_bytes(), str(path))


def decode_manifest(text: bytes, source: str) -> Manifest:
    """Parse a manifest from JSON bytes; `source` names them in the `FormatError` if they are none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError(f"{source} is not JSON: fetch the manifest again") from None
    return parse_manifest(document)


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; an `OSError` names the file and its size."""
    with named(part_of(path), f"{len(data)} bytes"):
        write_atomically(path, data, part_of(path))
