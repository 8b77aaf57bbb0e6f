"""A user's zip, opened with care: its directory is bounded, and every member is judged."""

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
"""Members of an archive."""
MAX_DIRECTORY_BYTES = 32 * 2**20
"""Bytes of the archive's directory: some 160 for every member."""
MAX_RATIO = 200
"""Uncompressed over compressed size of a member; images and pixels stay far below."""
RATIO_FROM = 2**20
"""A member of fewer bytes may be compressed as much as it likes."""
MAX_NAME = 500
"""Characters of a member's name."""

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
"""What zipfile raises for archives and members that it cannot read."""


class _Bounded(io.FileIO):
    """A file of which no single read is large: zipfile takes in the whole directory by one."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; `DataError` when these are more than a directory may have."""
        left = self._length() - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > MAX_DIRECTORY_BYTES:
            raise DataError(
                f"the archive's directory has {wanted} bytes, at most {MAX_DIRECTORY_BYTES} are read: "
                "shorten the file names, or send fewer files"
            )
        return super().read(wanted) or b""

    def _length(self) -> int:
        return os.fstat(self.fileno()).st_size


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip at `path`, whose members are plain files of sane sizes; `DataError` names the first other."""
    with _Bounded(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except UNREADABLE as error:
            raise DataError(
                f"the upload cannot be read as a zip or npz archive ({error}): make it again"
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
    """What is wrong with the member, or None."""
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
