"""The quick way for what is in memory: reading a whole or partial subset, or a rank, of a pinned version.

It knows nothing of its own. It asks the same functions as the routes do, and whenever one of them has to wait or to
refuse, or the request has anything unusual, the request goes the ordinary way as if nothing had been asked. Matching
routes and solving dependencies takes several times as long as everything that these requests need.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth import known_caller
from server.delivery import Answer, Conditions, answer_rank, answer_subset, choose_size, respond
from server.deps import Services
from server.problems import Problem

_PATH = re.compile(r"/v1/sets/([a-z0-9@-]{1,80})/(subsets|ranks)/([0-9]{1,9})|/(subsets)/([0-9]{1,9})")
_QUERY = re.compile(rb"set=([a-z0-9-]{1,63})(?:@|%40)([0-9]{1,9})")
_HEADERS = {
    b"authorization": "authorization",
    b"range": "range",
    b"if-range": "if_range",
    b"if-match": "if_match",
    b"if-none-match": "if_none_match",
}


class Shortcut:
    """Answers before the router what can be answered from memory."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is the application inside, which answers everything else."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        response = None
        if scope["type"] == "http" and scope["method"] == "GET":
            response = _from_memory(scope)
        await (response or self._app)(scope, receive, send)


def _from_memory(scope: Scope) -> Response | None:
    """The whole response; None: the request must go the ordinary way."""
    wanted = _wanted(scope)
    given = _given(scope["headers"])
    if wanted is None or given is None:
        return None
    services: Services = scope["app"].state.services
    reference, noun, number = wanted
    scheme, _, token = given.pop("authorization", "").partition(" ")
    caller = known_caller(services, token) if scheme == "Bearer" else None
    if caller is None or not (caller.is_admin or "subsets:read" in caller.scopes):
        return None
    try:
        version = services.catalog.warm(reference)
        if version is None:
            return None
        conditions = Conditions(**given)
        if noun == "ranks":
            answer = answer_rank(version, number, conditions, pinned=True, head=False)
        else:
            k = choose_size(version.manifest, number, {})
            answer = answer_subset(version, k, conditions, pinned=True, head=False)
    except Problem:
        return None
    if answer.span is None or _elsewhere(services, answer):
        return None
    pieces = services.ranks.warm(version, answer.k, *answer.span)
    if pieces is not None:
        services.metrics.memory_answers += 1
        services.metrics.memory_bytes += answer.span[1] - answer.span[0]
    return None if pieces is None else respond(answer, pieces)


def _elsewhere(services: Services, answer: Answer) -> bool:
    return answer.in_store and services.settings.downloads == "redirect"


def _wanted(scope: Scope) -> tuple[str, str, str] | None:
    """Reference of the set, what of it, and its number."""
    path = _PATH.fullmatch(scope["path"])
    if path is None:
        return None
    if path[1] is not None:
        return None if scope["query_string"] else (path[1], path[2], path[3])
    query = _QUERY.fullmatch(scope["query_string"])
    return None if query is None else (f"{query[1].decode()}@{query[2].decode()}", path[4], path[5])


def _given(headers: list[tuple[bytes, bytes]]) -> dict[str, Any] | None:
    """The headers that matter, by the names of `Conditions`; None when one is there twice."""
    given: dict[str, Any] = {}
    for name, value in headers:
        field = _HEADERS.get(name)
        if field is not None:
            if field in given:
                return None
            given[field] = value.decode("latin-1")
    return given
