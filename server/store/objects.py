"""Object stores: immutable bytes under a key, in a folder, in S3 (GCS, Azure), or in memory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

from mdc_core.errors import ConfigError
from mdc_core.system.atomic_file import sync

RETRY_SECONDS = 15
"""How long a failed request to a remote store is retried."""
READ_SECONDS = 30
"""How long a remote store may stay silent before it counts as unavailable."""
ATTEMPTS = 100
"""Attempts to create a folder and a file in it, while others delete folders that become empty."""
CHUNK = 256 * 1024
"""Bytes of a stream in memory at once, however slow its reader is."""


class Stored(NamedTuple):
    """An entry of a listing."""

    key: str
    size: int
    modified: datetime
    """When it was written, by the store's clock."""


class ObjectStore(Protocol):
    """The interface of a store. Keys are relative paths. A missing key raises `FileNotFoundError`."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Store bytes, or the content of a file. Atomic, and durable on return."""

    def get(self, key: str) -> bytes:
        """The whole object."""

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end)."""

    def stream(self, key: str, start: int, end: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """Bytes [start, end) in pieces. The call itself opens the object, and raises if it is missing."""

    def url(self, key: str, seconds: int) -> str | None:
        """A signed URL, valid for `seconds`; None if the store has none."""

    def head(self, key: str) -> int | None:
        """Size in bytes; None if the object does not exist."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """The objects below the folder `prefix`."""

    def copy(self, key: str, to: str) -> None:
        """Copy the object to another key. Its time becomes now."""

    def delete(self, key: str) -> None:
        """Delete the object, if it exists."""

    def delete_unfinished(self, before: datetime) -> None:
        """Delete leftovers of writes interrupted before that time, if the store lists them."""


class RemoteObjects:
    """Any store that obstore supports."""

    def __init__(self, store: Any) -> None:
        """`store` is one of `obstore.store`."""
        self._store = store

    def put(self, key: str, data: bytes | Path) -> None:
        """See `ObjectStore.put`. A file is sent in parts."""
        obstore.put(self._store, key, data)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return bytes(obstore.get(self._store, key).bytes())

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """See `ObjectStore.get_range`."""
        return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def stream(self, key: str, start: int, end: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """See `ObjectStore.stream`."""
        if start == end:
            return iter(())
        opened = obstore.get(self._store, key, options={"range": (start, end)})
        return (bytes(piece) for piece in opened.stream(min_chunk_size=chunk))

    def url(self, key: str, seconds: int) -> str | None:
        """See `ObjectStore.url`."""
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            return None
        return obstore.sign(self._store, "GET", key, timedelta(seconds=seconds))

    def head(self, key: str) -> int | None:
        """See `ObjectStore.head`."""
        try:
            return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[Stored]:
        """See `ObjectStore.list`."""
        for page in obstore.list(self._store, prefix=prefix):
            yield from (Stored(meta["path"], meta["size"], meta["last_modified"]) for meta in page)

    def copy(self, key: str, to: str) -> None:
        """See `ObjectStore.copy`. The store copies; no byte comes here."""
        obstore.copy(self._store, key, to)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def delete_unfinished(self, before: datetime) -> None:
        """See `ObjectStore.delete_unfinished`. In S3 a lifecycle rule of the bucket does this."""


class FolderObjects(RemoteObjects):
    """A local folder. Writes are durable: file and folder are synced to the disk."""

    def __init__(self, folder: Path) -> None:
        """Create the folder if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(LocalStore(prefix=folder, automatic_cleanup=True))  # deletes empty folders
        self._folder = folder

    def put(self, key: str, data: bytes | Path) -> None:
        """See `ObjectStore.put`: temporary file, fsync, rename, fsync of the folder."""
        steps = key.split("/")
        if any(step in ("", ".", "..") or "#" in step for step in steps):
            raise ValueError(f"{key!r} is not a key: join names by '/', without '#', '.' and '..'")
        target = self._folder.joinpath(*steps)
        # obstore treats a file 'name#number' as an unfinished upload, and does not list it.
        temporary = target.with_name(f"{target.name}#{secrets.randbits(62)}")
        try:
            with _new_file(temporary) as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        while piece := source.read(CHUNK):
                            file.write(piece)
                else:
                    file.write(data)
                sync(file)
            # Opened before the rename: whoever deletes the object next may delete its folder as well.
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.replace(temporary, target)
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def copy(self, key: str, to: str) -> None:
        """See `ObjectStore.copy`. Both keys are hard links to one file, so the time changes for both."""
        super().copy(key, to)
        os.utime(self._folder / to)

    def delete_unfinished(self, before: datetime) -> None:
        """See `ObjectStore.delete_unfinished`."""
        for path in self._folder.rglob("*#*"):
            delete_old(path, before)


def _new_file(path: Path) -> BinaryIO:
    """Create a file. Its folder may vanish meanwhile, when another process deletes the last object in it."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    return path.open("xb")


def delete_old(path: Path, before: datetime) -> None:
    """Delete a file last written before that time, unless it is gone already."""
    with suppress(FileNotFoundError):
        if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
            path.unlink()


def open_objects(url: str) -> ObjectStore:
    """The store at `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or `memory://`.

    Credentials and endpoints come from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
    Raises `ConfigError` if the URL is invalid.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise ConfigError(f"object store {url!r}: write a folder as file:///absolute/path")
        return FolderObjects(Path(unquote(parts.path)))
    try:
        if parts.scheme == "memory":
            return RemoteObjects(from_url(url))
        # By default a whole download may take 30 s, which a slow device needs for its first image alone.
        return RemoteObjects(
            from_url(
                url,
                client_options={
                    "timeout": "2 hours",
                    "connect_timeout": "5 seconds",
                    "read_timeout": timedelta(seconds=READ_SECONDS),
                    # Options given here override the environment, so pass this one on.
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"},
                },
                # Short, because the caller of a request waits meanwhile.
                retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )
        )
    except (ValueError, obstore.exceptions.BaseError) as error:
        raise ConfigError(f"object store {url!r} cannot be used: {str(error).splitlines()[0]}") from error
