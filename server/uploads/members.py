"""Open an untrusted zip: its directory is limited, and every member is checked."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdc_core.data.zips import check_apart
from mdc_core.errors import DataError

MAX_MEMBERS = 200_000
"""Maximum number of members of an archive."""
MAX_DIRECTORY_BYTES = 32 * 2**20
"""Maximum size of the archive's directory: some 160 bytes per member."""
MAX_RATIO = 200
"""Maximum ratio of uncompressed to compressed size. Images and pixels stay far below."""
RATIO_FROM = 2**20
"""`MAX_RATIO` applies from this uncompressed size on."""
MAX_NAME = 500
"""Maximum length of a member's name."""

UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile raises for unreadable archives and members."""


class _Bounded(io.FileIO):
    """A file with a limit on each read, since zipfile reads the whole directory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes. Raises `DataError` above `MAX_DIRECTORY_BYTES`."""
        left = self._length() - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > MAX_DIRECTORY_BYTES:
            raise DataError(
                f"the archive's directory has {wanted} bytes, and the limit is {MAX_DIRECTORY_BYTES}: "
                "shorten the file names, or send fewer files"
            )
        return super().read(wanted) or b""

    def _length(self) -> int:
        return os.fstat(self.fileno()).st_size


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip at `path`. Raises `DataError` for the first member that is not a plain file of sane size."""
    with _Bounded(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except UNREADABLE as error:
            raise DataError(
                f"the upload cannot be read as a zip or npz archive ({error}): create it again"
            ) from error
        with archive:
            _check_members(archive.infolist())
            check_apart(archive, "the upload")
            yield archive


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise DataError(f"the archive has {len(members)} members, at most {MAX_MEMBERS} are allowed")
    seen: set[str] = set()
    for member in members:
        fault = _fault(member)
        if member.filename in seen:
            fault = "is in the archive twice"
        if fault is not None:
            raise DataError(f"member {member.filename[:MAX_NAME]!r} {fault}")
        seen.add(member.filename)


def _fault(member: zipfile.ZipInfo) -> str | None:
    """The member's fault, or None."""
    name = member.orig_filename
    ratio = member.file_size / max(1, member.compress_size)
    faults = {
        f"has a name of {len(name)} characters: at most {MAX_NAME}": len(name) > MAX_NAME,
        "has a name with control characters or backslashes": not name.isprintable() or "\\" in name,
        "has an absolute name: names start with train/ or test/": name.startswith("/") or name[1:2] == ":",
        "has '.', '..' or nothing between two '/' of its name": _has_odd_step(name),
        "is a link: only plain files are accepted": stat.S_ISLNK(member.external_attr >> 16),
        "is encrypted: make the archive without a password": bool(member.flag_bits & 0x1),
        "is compressed by another method than deflate": member.compress_type
        not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
        f"expands {ratio:.0f} times: at most {MAX_RATIO}": member.file_size >= RATIO_FROM
        and ratio > MAX_RATIO,
    }
    return next((text for text, applies in faults.items() if applies), None)


def _has_odd_step(name: str) -> bool:
    return any(step in ("", ".", "..") for step in name.removesuffix("/").split("/"))
