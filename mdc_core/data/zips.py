"""What every reader of a user's zip refuses. Needs nothing but the standard library."""

from __future__ import annotations

import zipfile

from mdc_core.errors import DataError

LOCAL_HEADER_BYTES = 30
"""Of a member, before its name and data, at least (APPNOTE 4.3.7)."""


def check_apart(archive: zipfile.ZipFile, name: str) -> None:
    """Raise `DataError` where members share bytes: so a small file becomes any amount of data (a zip bomb).

    `name` is what the message calls the archive. Python does the same, but not in all of its patch releases.
    """
    end, before = 0, ""
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise DataError(
                f"{name}: members {before!r} and {info.filename!r} overlap: make the archive again"
            )
        end, before = info.header_offset + LOCAL_HEADER_BYTES + info.compress_size, info.filename
    if end > archive.start_dir:
        raise DataError(f"{name}: member {before!r} overlaps the directory: make the archive again")
