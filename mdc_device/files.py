"""Files on the device: what in them is damaged, and replacing them without ever leaving half a file."""

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

from mdc_core.atomic_file import write_atomically
from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest, parse_manifest
from mdc_core.errors import FormatError
from mdc_device.errors import BusyError

BLOCK = 1 << 20
BRIEFLY_S = 0.1
"""What is waited for a lock."""


def part_of(path: Path) -> Path:
    """Where the file is while it is incomplete: FILE.part."""
    return path.with_name(path.name + ".part")


def manifest_of(path: Path) -> Path:
    """Where the manifest of the file is: FILE.manifest.json."""
    return path.with_name(path.name + ".manifest.json")


def all_of(path: Path) -> tuple[Path, ...]:
    """The file of a subset and all that may lie beside it."""
    return path, part_of(path), manifest_of(path), state_of(path), lock_of(path)


def part_bytes(path: Path) -> int:
    """Bytes of FILE.part; 0 when there is none."""
    try:
        return part_of(path).stat().st_size
    except FileNotFoundError:
        return 0


def state_of(path: Path) -> Path:
    """Where the state of the file is: FILE.state.json."""
    return path.with_name(path.name + ".state.json")


def length_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return file.seek(0, os.SEEK_END)


def lock_of(path: Path) -> Path:
    """What processes lock while they are at the file: FILE.lock. Whoever is the last removes it."""
    return path.with_name(path.name + ".lock")


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep others from the file and what lies beside it; `shared` is for those who only read, any number of them.

    Raises:
        BusyError: another process is at it.
    """
    try:
        handle = _locked_file(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        if shared and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # nobody can change it
            yield
            return
        raise
    try:
        yield
    finally:
        # Only who is alone may remove it: those who wait for nobody's lock look whether theirs is still there.
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
            if time.monotonic() < deadline:  # a reader that ends is alone for a moment, to remove the lock
                time.sleep(BRIEFLY_S / 20)
                continue
            raise BusyError(
                f"{path} is being read or changed by another process: nothing was done; wait for it to end"
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
    """Digests of the file of subset k, taken while its bytes pass in order: nothing is read twice."""

    def __init__(self, k: int, manifest: Manifest) -> None:
        """Nothing has passed yet."""
        self._k, self._manifest = k, manifest
        self._ends = [rankmajor.header_size(manifest.info)]
        self._ends += [rankmajor.subset_size(manifest.info, r) for r in range(1, k + 1)]
        self._whole = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._pieces: list[str] = []
        self.position = 0
        """Bytes that have passed."""

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes; beyond the end of the file they count for the whole alone."""
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
        """All that the open file has behind what has passed, up to the byte `end` if there is one."""
        file.seek(self.position)
        while block := file.read(BLOCK if end is None else min(BLOCK, end - self.position)):
            self.update(block)

    @property
    def digest(self) -> str:
        """Hex sha256 of all that has passed."""
        return self._whole.hexdigest()

    @property
    def is_right(self) -> bool:
        """Whether it was, to the byte, the file of subset k."""
        return self.digest == self._manifest.digests.subsets[self._k - 1]

    @property
    def bad_ranks(self) -> tuple[int, ...]:
        """The ranks 1..k that are damaged or missing."""
        promised = self._manifest.digests.ranks
        found = self._pieces[1:]
        return tuple(r for r in range(1, self._k + 1) if found[r - 1 : r] != [promised[r - 1]])


def scan(file: BinaryIO, k: int, manifest: Manifest) -> Scanner:
    """The digests of an open file that should be subset k; reads it once."""
    scanner = Scanner(k, manifest)
    scanner.read(file)
    return scanner


def size_of(file: BinaryIO, manifest: Manifest, remembered: int | None = None) -> int:
    """The k that a file is, or was before it was damaged: as its header says, or else as remembered, or else by
    its length.
    """
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
    """The header of a file, or the first bytes when their length is no possible one."""
    file.seek(0)
    first = file.read(rankmajor.HEADER_STEP)
    length = int.from_bytes(first[:8], "little") + 8
    if len(first) < length <= length_of(file):
        file.seek(len(first))
        first += file.read(length - len(first))
    return first


def check_room(folder: Path, wanted: int, what: str) -> None:
    """Raise `OSError` unless so many bytes can be written to the folder."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} takes {wanted} bytes more, and there is room for {free}: free some",
            str(folder),
        )


@contextmanager
def named(path: Path, what: str) -> Iterator[None]:
    """Let an `OSError` of a write tell the file and what it was to hold, which the system does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"{error.strerror}, writing {what}", str(path)) from None


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


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path` atomically; an `OSError` names the file and its size."""
    with named(part_of(path), f"{len(data)} bytes"):
        write_atomically(path, data, part_of(path))
