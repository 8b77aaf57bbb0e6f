"""Objects: immutable bytes under a key, in a folder, in S3 (GCS, Azure), or in memory."""

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

RETRY_SECONDS = 15
"""How long a remote store that fails is tried again."""
READ_SECONDS = 30
"""How long a remote store may say nothing before it counts as away."""
ATTEMPTS = 100
"""To make a folder that others delete, as often as it becomes empty, and a file in it."""
CHUNK = 256 * 1024
"""Bytes that a stream holds at once, so that a slow reader holds no more."""


class Stored(NamedTuple):
    """An object in a list."""

    key: str
    size: int
    modified: datetime
    """When it was put, by the store's clock."""


class ObjectStore(Protocol):
    """What the service needs of a store. Keys are relative paths; a missing key is a `FileNotFoundError`."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Store bytes, or the content of a file, whole or not at all; durable on return."""

    def get(self, key: str) -> bytes:
        """The whole object."""

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end)."""

    def stream(self, key: str, start: int, end: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """Bytes [start, end) piece by piece. The object is opened, and found missing, by the call itself."""

    def url(self, key: str, seconds: int) -> str | None:
        """A URL that reads the object for so long without credentials; None: the store has no such thing."""

    def head(self, key: str) -> int | None:
        """Size in bytes; None when there is no such object."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """The objects below the folder `prefix`."""

    def copy(self, key: str, to: str) -> None:
        """Put the same bytes under another key; its time is now."""

    def delete(self, key: str) -> None:
        """Remove the object, if there is one."""

    def delete_unfinished(self, before: datetime) -> None:
        """Remove what is left of writes that were interrupted before that time, where the store shows it."""


class RemoteObjects:
    """Every store that obstore knows."""

    def __init__(self, store: Any) -> None:
        """`store` is one of `obstore.store`."""
        self._store = store

    def put(self, key: str, data: bytes | Path) -> None:
        """See `ObjectStore.put`; a file is sent in parts."""
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
        """See `ObjectStore.copy`; the bytes stay in the store."""
        obstore.copy(self._store, key, to)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def delete_unfinished(self, before: datetime) -> None:
        """See `ObjectStore.delete_unfinished`; parts in S3 are the part of a rule of the bucket."""


class FolderObjects(RemoteObjects):
    """A folder of this machine. Writes are durable: file and folder are flushed to the disk."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(LocalStore(prefix=folder, automatic_cleanup=True))  # no empty folders stay
        self._folder = folder

    def put(self, key: str, data: bytes | Path) -> None:
        """See `ObjectStore.put`: temporary file, fsync, rename, fsync of the folder."""
        steps = key.split("/")
        if any(step in ("", ".", "..") or "#" in step for step in steps):
            raise ValueError(f"{key!r} is not a key: it is names joined by '/', without '#', '.' and '..'")
        target = self._folder.joinpath(*steps)
        # obstore takes a file 'name#number' for an unfinished upload, and lists none of them.
        temporary = target.with_name(f"{target.name}#{secrets.randbits(62)}")
        try:
            with _new_file(temporary) as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        while piece := source.read(CHUNK):
                            file.write(piece)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
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
        """See `ObjectStore.copy`; the file has two names until one is deleted."""
        super().copy(key, to)
        os.utime(self._folder / to)

    def delete_unfinished(self, before: datetime) -> None:
        """See `ObjectStore.delete_unfinished`."""
        for path in self._folder.rglob("*#*"):
            delete_old(path, before)


def _new_file(path: Path) -> BinaryIO:
    """Open a file that is not there yet, in a folder that may go meanwhile: with the last object of another's."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    return path.open("xb")


def delete_old(path: Path, before: datetime) -> None:
    """Remove a file that was last written before that time; one that has gone meanwhile is no error."""
    with suppress(FileNotFoundError):
        if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
            path.unlink()


def open_objects(url: str) -> ObjectStore:
    """The store at `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or `memory://`.

    Credentials and endpoints come from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
    Raises `ConfigError` when the URL cannot be understood.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise ConfigError(f"object store {url!r}: write a folder as file:///absolute/path")
        return FolderObjects(Path(unquote(parts.path)))
    try:
        if parts.scheme == "memory":
            return RemoteObjects(from_url(url))
        # The default ends a whole download after 30 s, which a slow device needs for its first image.
        return RemoteObjects(
            from_url(
                url,
                client_options={
                    "timeout": "2 hours",
                    "connect_timeout": "5 seconds",
                    "read_timeout": timedelta(seconds=READ_SECONDS),
                    # Options given here replace those of the environment.
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"},
                },
                # The caller of a request waits for it.
                retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )
        )
    except (ValueError, obstore.exceptions.BaseError) as error:
        raise ConfigError(f"object store {url!r} cannot be used: {str(error).splitlines()[0]}") from error
