"""The quick way for what is in memory: reading a whole or partial subset, or a rank, of a pinned version.

It knows nothing of its own. It asks the same functions as the routes do, and whenever one of them has to wait or to
refuse, or the request has anything unusual, the request goes the ordinary way as if nothing had been asked. Middleware,
matching routes and solving dependencies take several times as long as everything that these requests need.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope, Send

from server.auth import checked_caller, confirmed_caller, present
from server.callers import Caller
from server.catalog import Version
from server.delivery import Conditions, answer_rank, answer_subset, in_chunks, named_size
from server.deps import Services
from server.logs import RequestLines, begin_line
from server.lru import Lru
from server.problems import Problem, request_id_of
from server.ranks import Piece

KEPT = 256
"""Answers that are kept for each version, without their bytes."""

_PATH = re.compile(
    r"/v1/sets/([a-z0-9-]{1,63}@[0-9]{1,9})/(subsets|ranks)/([0-9]{1,9})|/(subsets)/([0-9]{1,9})"
)
_QUERY = re.compile(rb"set=([a-z0-9-]{1,63})(?:@|%40)([0-9]{1,9})")
_CONDITIONS = {b"range": 0, b"if-range": 1, b"if-match": 2, b"if-none-match": 3}
"""Place of each header among the fields of `Conditions`."""

_Conditions = tuple[str | None, ...]
_Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")


class _Ready(NamedTuple):
    """All of an answer but its bytes and the id of the request."""

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


class Shortcut:
    """Answers before everything else what can be answered from memory."""

    def __init__(self) -> None:
        """It knows no answer yet."""
        # By path and conditions: all that an answer of a version depends on.
        self._ready: WeakKeyDictionary[Version, Lru[_Conditions, _Ready]] = WeakKeyDictionary()
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}
        self._lines = RequestLines()

    async def answer(self, services: Services, scope: Scope, send: Send) -> bool:
        """Answer a request to the end; False: it must go the ordinary way, and nothing was sent."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return False
        started = time.perf_counter()
        try:
            found = await self._from_memory(services, scope)
        except (Problem, SQLAlchemyError):
            return False
        if found is None:
            return False
        key_id, ready, chunks = found
        request_id = request_id_of(scope)
        self._lines.add(ready.line, request_id, key_id, time.perf_counter() - started)
        services.metrics.memory_answers += 1
        services.metrics.memory_bytes += ready.size
        headers = [*ready.headers, (b"x-request-id", request_id.encode())]
        await send({"type": "http.response.start", "status": ready.status, "headers": headers})
        for left in range(len(chunks) - 1, -1, -1):
            await send({"type": "http.response.body", "body": chunks[-1 - left], "more_body": left > 0})
        return True

    async def _from_memory(self, services: Services, scope: Scope) -> tuple[str, _Ready, list[Piece]] | None:
        """Id of the key, answer and bytes; None, or a `Problem`, where not all is in memory, or not as usual."""
        path = scope["path"]
        wanted = _wanted(path, scope["query_string"])
        given = _given(scope["headers"])
        if wanted is None or given is None:
            return None
        token, conditions = given
        reference, noun, number = wanted
        caller, version = await self._trusted(services, scope, token, reference)
        if caller is None or version is None or not caller.may("subsets:read"):
            return None
        kept = self._ready.get(version)
        if kept is None:
            kept = self._ready[version] = Lru(KEPT)
        ready = kept.get((path, *conditions))
        if ready is None:
            ready = _prepared(services, version, path, noun, number, Conditions(*conditions))
            if ready is None:
                return None
            kept.put((path, *conditions), ready)
        pieces = services.ranks.warm(version, ready.k, *ready.span)
        return None if pieces is None else (caller.key_id, ready, in_chunks(pieces))

    async def _trusted(
        self, services: Services, scope: Scope, token: str, reference: str
    ) -> tuple[Caller | None, Version | None]:
        """Whose key it is and the version, as the database said a moment ago; None for what it does not confirm.

        `Problem` 401 or 429 for a key that is new here, and refused.

        A busy key or version is asked about again before trust in it ends. Else every request would come to its end
        at once; they would wait, and not even then would more than one question be asked.
        """
        key = present(services.secret_key, token)
        caller, is_key_ageing = services.known_keys.get(key) or (None, services.known_keys.met(key))
        if is_key_ageing:
            asked = self._ask(key, partial(confirmed_caller, services, key))
            caller = caller or await asyncio.shield(asked)
        elif caller is None:
            caller = await checked_caller(services, key, scope)
        if caller is None:
            return None, None
        version, is_version_ageing = services.catalog.warm(reference) or (None, True)
        if is_version_ageing:
            confirmed = self._ask(reference, partial(services.catalog.confirm, reference))
            version = version or await asyncio.shield(confirmed)
        return caller, version

    def _ask(self, subject: Hashable, question: Callable[[], T]) -> asyncio.Task[T | None]:
        """Begin to ask the database about a key or a version, unless that is being done already."""
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


def _prepared(
    services: Services, version: Version, path: str, noun: str, number: str, conditions: Conditions
) -> _Ready | None:
    """The answer as the routes work it out. `Problem` when they refuse; None when it has no bytes of ours."""
    if noun == "ranks":
        answer = answer_rank(version, number, conditions, pinned=True, head=False)
    else:
        k = named_size(version.manifest, number)
        answer = answer_subset(version, k, conditions, pinned=True, head=False)
    if answer.span is None or (answer.in_store and services.settings.downloads == "redirect"):
        return None
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    template = "/subsets/{k}" if noun == "subsets" else "/ranks/{r}"
    route = "/v1/sets/{name}" * path.startswith("/v1/") + template
    line = begin_line(method="GET", path=path, route=route, status=answer.status)
    return _Ready(answer.status, headers, answer.k, answer.span, line)


def _given(headers: _Headers) -> tuple[str, _Conditions] | None:
    """The key and the conditions; None when a header is there twice, or makes the request unusual."""
    token = ""
    conditions: list[str | None] = [None] * len(_CONDITIONS)
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            if token or scheme != "Bearer":
                return None
            token = rest
        elif name == b"origin":  # the answer needs the headers of CORS
            return None
        elif (place := _CONDITIONS.get(name)) is not None:
            if conditions[place] is not None:
                return None
            conditions[place] = value.decode("latin-1")
    return token, tuple(conditions)


@lru_cache(KEPT)
def _wanted(path: str, query: bytes) -> tuple[str, str, str] | None:
    """Reference of the set, what of it, and its number."""
    parts = _PATH.fullmatch(path)
    if parts is None:
        return None
    if parts[1] is not None:
        return None if query else (parts[1], parts[2], parts[3])
    asked = _QUERY.fullmatch(query)
    return None if asked is None else (f"{asked[1].decode()}@{asked[2].decode()}", parts[4], parts[5])
