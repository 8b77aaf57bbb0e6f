"""The fast path serves a subset or a rank of a pinned version, whole or in part, from memory.

It has no rules of its own: it calls the same functions as the routes. If one of them must wait or refuse, or if the
request is unusual in any way, the request takes the ordinary path as if nothing had happened. It pays because
middleware, routing and dependencies take several times as long as everything else that these requests need.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope, Send

from server.access.authenticate import Authenticator
from server.access.callers import Caller
from server.caching.lru import Lru
from server.delivery.answers import (
    decide_rank,
    decide_subset,
    decided_rank,
    decided_subset,
    in_chunks,
    in_store,
    named_rank,
    named_size,
)
from server.delivery.catalog import Catalog, Version
from server.delivery.rank_cache import Piece, RankCache
from server.logs import RequestLines, begin_line
from server.web.conditional import LONGEST, Conditions, Decision
from server.web.cors import VARY
from server.web.problems import MAX_HEADER_BYTES, Problem, request_id_of

CACHED_RESPONSE_BYTES = 4 * 2**20
"""Size of the cache of prepared responses, without their bodies."""
CACHED_TARGETS = 256
"""Number of parsed paths and queries to cache."""
LONGEST_PATH = 120
LONGEST_QUERY = 80

_PATH = re.compile(
    r"/v1/sets/([a-z0-9-]{1,63}@[1-9][0-9]{0,8})/(subsets|ranks)/([1-9][0-9]{0,8})|/(subsets)/([1-9][0-9]{0,8})"
)
_QUERY = re.compile(rb"set=([a-z0-9-]{1,63})(?:@|%40)([1-9][0-9]{0,8})")
_CONDITIONS = {b"range": 0, b"if-range": 1, b"if-match": 2, b"if-none-match": 3}
"""Place of each header among the fields of `Conditions`."""

_Headers = list[tuple[bytes, bytes]]
_Answer = tuple[str, str, Decision]
"""What an answer depends on: the version, the path, and what the conditions come to."""
T = TypeVar("T")


class _Wanted(NamedTuple):
    """What a path and a query ask for."""

    reference: str
    noun: str
    number: str


class _Ready(NamedTuple):
    """A response except its bytes and the request id."""

    status: int
    headers: _Headers
    k: int
    span: tuple[int, int]
    """Which bytes of the file of subset k, half open."""
    line: str
    """Begin of its line in the log."""

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return self.span[1] - self.span[0]

    @property
    def weight(self) -> int:
        """Approximate memory of its cache entry in bytes."""
        return 1200 + sum(100 + len(name) + len(value) for name, value in self.headers) + len(self.line)


class FastPath:
    """Serves requests from memory, before any middleware."""

    def __init__(
        self,
        authenticator: Authenticator,
        catalog: Catalog,
        ranks: RankCache,
        *,
        redirects: bool,
        shared: bool,
    ) -> None:
        """`redirects`: redirect to the object store if possible. `shared`: CORS is enabled."""
        self._authenticator, self._catalog, self._ranks = authenticator, catalog, ranks
        self._redirects, self._shared = redirects, shared
        # Plain numbers instead of metrics objects: every microsecond counts in the event loop.
        self.answers = 0
        """Requests answered so far."""
        self.sent_bytes = 0
        """Bytes of their bodies."""
        self._ready: Lru[_Answer, _Ready] = Lru(CACHED_RESPONSE_BYTES, lambda ready: ready.weight)
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}
        self._lines = RequestLines()

    async def answer(self, scope: Scope, send: Send) -> bool:
        """Serve a request. Returns False, with nothing sent, if it must take the ordinary path."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return False
        started = time.perf_counter()
        try:
            found = await self._from_memory(scope)
        except (Problem, SQLAlchemyError):
            return False
        except Exception as error:  # the ordinary path can still serve the request
            structlog.get_logger().error("fast path failed", exc_info=error)
            return False
        if found is None:
            return False
        key_id, ready, chunks = found
        request_id = request_id_of(scope)
        self._lines.add(ready.line, request_id, key_id, time.perf_counter() - started)
        self.answers += 1
        self.sent_bytes += ready.size
        headers = [*ready.headers, (b"x-request-id", request_id.encode())]
        await send({"type": "http.response.start", "status": ready.status, "headers": headers})
        for left in range(len(chunks) - 1, -1, -1):
            await send({"type": "http.response.body", "body": chunks[-1 - left], "more_body": left > 0})
        return True

    async def _from_memory(self, scope: Scope) -> tuple[str, _Ready, list[Piece]] | None:
        """The id of the key, the response and its bytes; None or a `Problem` if not all of it is in memory."""
        path, query = scope["path"], scope["query_string"]
        if len(path) > LONGEST_PATH or len(query) > LONGEST_QUERY:
            return None
        wanted, given = _wanted(path, query), _given(scope["headers"])
        if wanted is None or given is None:
            return None
        token, conditions = given
        caller, version = await self._trusted(scope, token, wanted.reference)
        if caller is None or version is None or not caller.may("subsets:read"):
            return None
        decision = _decision(version, wanted, conditions, redirects=self._redirects)
        if decision is None:
            return None
        ready = self._ready.get((wanted.reference, path, decision))
        if ready is None:
            ready = _prepared(version, path, wanted, decision, shared=self._shared)
            self._ready.put((wanted.reference, path, decision), ready)
        pieces = self._ranks.warm(version, ready.k, *ready.span)
        return None if pieces is None else (caller.key_id, ready, in_chunks(pieces))

    async def _trusted(
        self, scope: Scope, token: str, reference: str
    ) -> tuple[Caller | None, Version | None]:
        """The caller and the version, as confirmed within `TRUST_SECONDS`; None if the database denies one.

        Raises `Problem` 401 or 429 for a new key that is invalid.

        Half-way through the trust window the first request starts a query in the background and goes on with the
        cached value. Without this, all requests for a busy key or version would find it expired at the same moment
        and wait for the database together. `_ask` shares one query among all requests, and `shield` keeps it running
        when the client of the request that started it disconnects.
        """
        key = self._authenticator.present(token)
        known_keys = self._authenticator.known_keys
        caller, is_key_ageing = known_keys.get(key) or (None, known_keys.met(key))
        if is_key_ageing:
            asked = self._ask(key, partial(self._authenticator.confirm, key))
            caller = caller or await asyncio.shield(asked)
        elif caller is None:
            caller = await self._authenticator.check(key, scope)
        if caller is None:
            return None, None
        version, is_version_ageing = self._catalog.warm(reference) or (None, True)
        if is_version_ageing:
            confirmed = self._ask(reference, partial(self._catalog.confirm, reference))
            version = version or await asyncio.shield(confirmed)
        return caller, version

    def _ask(self, subject: Hashable, question: Callable[[], T]) -> asyncio.Task[T | None]:
        """The running query about a key or a version; starts one if there is none."""
        if subject not in self._asking:
            self._asking[subject] = asyncio.create_task(self._asked(subject, question))
        return self._asking[subject]

    async def _asked(self, subject: Hashable, question: Callable[[], T]) -> T | None:
        try:
            return await run_in_threadpool(question)
        except Problem:
            return None
        except SQLAlchemyError as error:
            structlog.get_logger().warning("the database does not answer", error=repr(error))
            return None
        finally:
            del self._asking[subject]


def _decision(
    version: Version, wanted: _Wanted, conditions: Conditions, *, redirects: bool
) -> Decision | None:
    """What to send. `Problem` if the routes reject the request; None if the response has no bytes from memory."""
    if wanted.noun == "ranks":
        decision = decide_rank(version, named_rank(version.manifest, wanted.number), conditions)
    else:
        k = named_size(version.manifest, wanted.number)
        decision = decide_subset(version, k, conditions)
        if redirects and in_store(version, k, conditions, decision):
            return None
    return None if decision.status == 304 else decision


def _prepared(version: Version, path: str, wanted: _Wanted, decision: Decision, *, shared: bool) -> _Ready:
    """The response as the routes compute it; `shared`: pages of other origins may read it too."""
    decided = decided_rank if wanted.noun == "ranks" else decided_subset
    answer = decided(version, int(wanted.number), decision, pinned=True)
    assert answer.span is not None
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    if shared:
        headers.append((b"vary", VARY.encode()))
    template = "/subsets/{k}" if wanted.noun == "subsets" else "/ranks/{r}"
    route = "/v1/sets/{name}" * path.startswith("/v1/") + template
    line = begin_line(method="GET", path=path, route=route, status=answer.status)
    return _Ready(answer.status, headers, answer.k, answer.span, line)


def _given(headers: _Headers) -> tuple[str, Conditions] | None:
    """The key and the conditions; None if a header is repeated, long, or makes the request unusual."""
    token = ""
    conditions: list[str | None] = [None] * len(_CONDITIONS)
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            if token or scheme != "Bearer":
                return None
            token = rest
        elif name == b"origin":  # the answer needs the headers of CORS
            return None
        elif (place := _CONDITIONS.get(name)) is not None:
            if conditions[place] is not None or len(value) > LONGEST:
                return None
            conditions[place] = value.decode("latin-1")
    return None if size > MAX_HEADER_BYTES else (token, Conditions(*conditions))


@lru_cache(CACHED_TARGETS)
def _wanted(path: str, query: bytes) -> _Wanted | None:
    """The reference of the set, what is requested of it, and its number. Path and query are short."""
    parts = _PATH.fullmatch(path)
    if parts is None:
        return None
    if parts[1] is not None:
        return None if query else _Wanted(parts[1], parts[2], parts[3])
    asked = _QUERY.fullmatch(query)
    return None if asked is None else _Wanted(f"{asked[1].decode()}@{asked[2].decode()}", parts[4], parts[5])
