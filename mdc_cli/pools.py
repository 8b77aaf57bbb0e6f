"""Trained networks in a folder, reused by later runs on the same data."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from mdc_core.system.atomic_file import write_atomically


class FolderPools:
    """A `PoolStore` in a folder. Failures to read or write are ignored: they only cost time."""

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
        part = self._folder / f"{key}.{secrets.token_hex(8)}.part"
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / key, data, part)
