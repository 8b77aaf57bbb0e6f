"""A cache of published versions. A version never changes, so only its withdrawal is revalidated."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest, parse_manifest
from server.caching.revalidating import RevalidatingCache
from server.store import sets
from server.store.db import Database
from server.store.tables import CondensedSet
from server.web.problems import Problem, not_found

CACHED_VERSIONS = 64
"""Number of versions to cache."""

_REFERENCE = re.compile(r"([a-z0-9][a-z0-9-]{0,62})(?:@([1-9][0-9]{0,8}))?")


@dataclass(frozen=True, eq=False)
class Version:
    """A published version, read once and shared by all requests; compared by identity."""

    row: CondensedSet
    """With its manifest; it belongs to no session."""
    manifest: Manifest
    object_key: str
    header_bytes: int
    """H: bytes before the first rank, the same for every k."""
    rank_bytes: int
    """B: bytes of a rank."""

    @classmethod
    def of(cls, row: CondensedSet) -> Version:
        """The version of a row whose manifest is loaded."""
        manifest = parse_manifest(row.manifest)
        info = manifest.info
        return cls(row, manifest, row.object_key, rankmajor.header_size(info), info.rank_bytes)

    @property
    def path(self) -> str:
        """Path of the version in the API."""
        return f"/v1/sets/{self.row.name}@{self.row.version}"

    def length(self, k: int) -> int:
        """H + kB: bytes of the file of subset k."""
        return self.header_bytes + k * self.rank_bytes


@lru_cache(1024)
def split_reference(reference: str) -> tuple[str, int | None]:
    """Name and version of `name` or `name@version`. `Problem` 404 when it is neither."""
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise _unknown(reference)
    return parts[1], None if parts[2] is None else int(parts[2])


class Catalog:
    """Finds versions, recently used ones without the database."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds."""
        self._db = db
        self._trusted: RevalidatingCache[tuple[str, int], Version] = RevalidatingCache(CACHED_VERSIONS, clock)

    def warm(self, reference: str) -> tuple[Version, bool] | None:
        """The version `name@version` if it is in memory and may still be delivered, and `RevalidatingCache.get`'s hint.

        Never waits.
        """
        name, version = split_reference(reference)
        return None if version is None else self._trusted.get((name, version))

    def find(self, reference: str) -> tuple[Version, bool]:
        """The version that `name` (the latest) or `name@version` means, and whether the version was named.

        Raises `Problem` 404: unknown, or withdrawn.
        """
        found = self.warm(reference)
        return (self.confirm(reference), "@" in reference) if found is None else (found[0], True)

    async def look_up(self, reference: str) -> tuple[Version, bool]:
        """As `find`, in a thread where the database has to be asked."""
        known = self.warm(reference)
        return (known[0], True) if known is not None else await run_in_threadpool(self.find, reference)

    def confirm(self, reference: str) -> Version:
        """The version that `name` or `name@version` means, as the database says now. Raises as `find` does."""
        name, version = split_reference(reference)
        with self._db.read() as session:
            number = version or sets.latest_version(session, name)
            if number is None:
                raise _withdrawn(reference) if sets.is_known(session, name) else _unknown(reference)
            return self._look_up(session, reference, name, number)

    def forget(self, name: str, version: int) -> None:
        """Ask the database before the version is delivered again."""
        self._trusted.forget((name, version))

    def _look_up(self, session: Session, reference: str, name: str, version: int) -> Version:
        asked = self._trusted.now()
        found = self._trusted.last((name, version))
        if found is not None:
            withdrawn = sets.is_withdrawn(session, name, version)
        else:
            row = sets.get(session, name, version)
            if row is None:
                raise _unknown(reference)
            found, withdrawn = Version.of(row), row.withdrawn_at is not None
        if withdrawn:
            self.forget(name, version)
            raise _withdrawn(reference)
        self._trusted.put((name, version), found, asked)
        return found


def _unknown(reference: str) -> Problem:
    return not_found(f"condensed set {reference!r}")


def _withdrawn(reference: str) -> Problem:
    return Problem(
        404, "withdrawn", f"condensed set {reference!r} was withdrawn by its owner: use another version"
    )
