"""Trained networks in a folder, for the next run on the same data."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


class FolderPools:
    """A `PoolStore` in a folder. One that cannot be read or written costs only time, so that is no error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> bytes | None:
        """See `PoolStore.get`."""
        try:
            return (self._folder / key).read_bytes()
        except OSError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """See `PoolStore.put`; other processes may write the same network at the same time."""
        temporary = self._folder / f"{key}.{secrets.token_hex(8)}.part"
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, self._folder / key)
            finally:
                temporary.unlink(missing_ok=True)
