"""Write files so that a crash leaves either the old content or the new, never a part of it. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, data: bytes, part: Path | None = None) -> None:
    """Write `data` to `path` durably, by way of the file `part` in the same folder (default: `path` + ".part").

    Give `part` a unique name if several processes may write `path` at once. A failed write leaves no `part` behind.
    """
    part = path.with_name(path.name + ".part") if part is None else part
    try:
        with part.open("wb") as file:
            file.write(data)
            sync(file)
        publish(part, path)
    except (OSError, KeyboardInterrupt):
        part.unlink(missing_ok=True)
        raise


def sync(file: BinaryIO) -> None:
    """Return once everything written to `file` is on the storage."""
    file.flush()
    os.fsync(file.fileno())


def publish(part: Path, path: Path) -> None:
    """Rename a synced file into place, and return once the rename is on the storage."""
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
