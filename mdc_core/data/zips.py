"""A check that every reader of a user's zip makes. Standard library only."""

from __future__ import annotations

import zipfile

from mdc_core.errors import DataError

LOCAL_HEADER_BYTES = 30
"""Minimum bytes of a member before its name and data (APPNOTE 4.3.7)."""


def check_apart(archive: zipfile.ZipFile, name: str) -> None:
    """Raise `DataError` if members share bytes, as in a zip bomb, where a small file unpacks to any amount of data.

    `name` is the archive's name in messages. Python checks this too, but not in all patch releases.
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
