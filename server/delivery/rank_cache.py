"""Bytes of subsets: headers are computed, ranks come from the cache or from one range of the stored object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from threading import Lock

from mdc_core.delivery import rankmajor
from mdc_core.errors import DigestError
from server.caching.lru import Lru
from server.delivery.catalog import Version
from server.store.objects import ObjectStore

Piece = bytes | memoryview
WHOLE_BODY_BYTES = 512 * 1024
"""Bodies up to this size are sent in one chunk, so a slow reader holds no more memory than this."""
WHOLE = 2**32
_LOCKS = 16


class RankCache:
    """Reads parts of subsets through a cache of ranks.

    It returns views of cached bytes, so that a slow reader holds no copy.
    """

    def __init__(self, objects: ObjectStore, capacity: int) -> None:
        """`capacity` is in bytes; 0 caches nothing."""
        self._objects = objects
        self._capacity = capacity
        # Key and rank; the header of subset k is kept as the rank -k, its whole file as WHOLE + k.
        self._kept: Lru[tuple[str, int], bytes] = Lru(capacity, len)
        # When many devices ask for a new set, one reads it and the others wait. Objects may share a lock.
        self._locks = [Lock() for _ in range(_LOCKS)]

    def warm(self, version: Version, k: int, start: int, end: int) -> list[Piece] | None:
        """Bytes [start, end) of the file of subset k if all are in memory; never waits for the store."""
        is_whole = start == 0 and end == version.length(k) <= WHOLE_BODY_BYTES
        if is_whole and (whole := self._kept.get((version.object_key, WHOLE + k))) is not None:
            return [whole]
        pieces: list[Piece] = []
        for rank, first, last in _parts(version, start, end):
            block = self._header(version, k) if rank == 0 else self._kept.get((version.object_key, rank))
            if block is None:
                return None
            pieces.append(memoryview(block)[first:last])
        if is_whole:  # join once, not for every device
            pieces = [b"".join(pieces)]
            self._kept.put((version.object_key, WHOLE + k), bytes(pieces[0]))
        return pieces

    def read(self, version: Version, k: int, start: int, end: int) -> Iterable[Piece]:
        """Bytes [start, end) of the file of subset k, piece by piece.

        A missing object is a `FileNotFoundError` of the call itself. Raises `DigestError` when a rank that is
        read to be kept is not the published one.
        """
        ranks = [rank for rank, _, _ in _parts(version, start, end) if rank > 0]
        # Do not cache what would evict most of the rest.
        if len(ranks) * version.rank_bytes > self._capacity // 2:
            return self._stream(version, k, start, end)
        with self._locks[hash(version.object_key) % _LOCKS]:
            blocks = self._load(version, ranks)
        return [
            memoryview(self._header(version, k) if rank == 0 else blocks[rank])[first:last]
            for rank, first, last in _parts(version, start, end)
        ]

    def _load(self, version: Version, ranks: list[int]) -> dict[int, bytes]:
        """These consecutive ranks; those that are not in memory by one range of the object."""
        key, size = version.object_key, version.rank_bytes
        blocks = {rank: block for rank in ranks if (block := self._kept.get((key, rank))) is not None}
        missing = [rank for rank in ranks if rank not in blocks]
        if missing:
            first = missing[0]
            data = self._objects.get_range(key, version.length(first - 1), version.length(missing[-1]))
            for rank in missing:
                block = data[(rank - first) * size : (rank - first + 1) * size]
                if rankmajor.sha256(block) != version.manifest.digests.ranks[rank - 1]:
                    raise DigestError(
                        f"rank {rank} of the stored object {key} is damaged: restore it", (rank,)
                    )
                self._kept.put((key, rank), block)
                blocks[rank] = block
        return blocks

    def _stream(self, version: Version, k: int, start: int, end: int) -> Iterator[Piece]:
        """Past the memory; the payload has the same offsets in file and object."""
        size = version.header_bytes
        head = self._header(version, k)[start:end]
        payload = self._objects.stream(version.object_key, max(start, size), max(end, size))
        return chain((head,), payload) if head else payload

    def _header(self, version: Version, k: int) -> bytes:
        key = version.object_key, -k
        kept = self._kept.get(key)
        if kept is None:
            kept = rankmajor.header(version.manifest.info, k)
            self._kept.put(key, kept)
        return kept


def _parts(version: Version, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """What [start, end) of a subset's file consists of: rank (0: the header), first and last byte in it."""
    size = version.header_bytes
    if start < size:
        yield 0, start, min(end, size)
    if end <= size:
        return
    rank_bytes = version.rank_bytes
    for rank in range(max(0, start - size) // rank_bytes + 1, (end - size - 1) // rank_bytes + 2):
        begin = size + (rank - 1) * rank_bytes
        yield rank, max(0, start - begin), min(end - begin, rank_bytes)
