"""Every error as `application/problem+json` (RFC 9457), with a stable `code` and the id of the request."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mdc_core.config.settings import fault
from server.store.errors import STORE_ERRORS

MEDIA_TYPE = "application/problem+json"
MAX_BODY_BYTES = 2**17
"""Largest body of a request that is not an upload."""
MAX_HEADER_BYTES = 2**15
"""Most bytes of a request's headers, names and values together; as much as nginx lets through unless it is told to."""
MAX_ERRORS = 100
"""Wrong fields that are told at once."""
UPLOAD_PATH = "/v1/datasets"
RETRY_STORE_SECONDS = 10
"""`Retry-After` while a store is unavailable."""

_log = structlog.get_logger()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHOWN = 200
"""Characters of a wrong value that are shown."""


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str
    """Where, for example `condense.ipc` or `query.limit`."""
    message: str
    """What is wrong, with the value and the limit."""


class ProblemBody(BaseModel):
    """An error; `code` is stable, the texts are for people."""

    model_config = ConfigDict(use_attribute_docstrings=True, title="Problem", extra="allow")

    type: str
    """A URI of the kind of problem."""
    title: str
    """The kind of problem in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What happened, and what to do next."""
    instance: str
    """Path of the request."""
    code: str
    """The kind of problem, for programs."""
    errors: list[FieldError] = Field(default_factory=list)
    """One entry per wrong field."""
    request_id: str
    """Also in the header X-Request-ID, and in the server's log."""


class Problem(HTTPException):
    """An error that is answered as a problem; `extra` are further members of the body."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`status` is the HTTP status."""
        super().__init__(status, detail, dict(headers or {}))
        self.code = code
        self.errors = list(errors)
        self.extra = dict(extra or {})


def not_found(what: str) -> Problem:
    """The answer to an id that is unknown, or another's: the two are not told apart."""
    return Problem(404, "not-found", f"there is no {what}")


def field_errors(error: ValidationError | RequestValidationError, *prefix: str) -> list[FieldError]:
    """What pydantic found, one entry per field, below `prefix`."""
    return [
        FieldError(
            field=".".join([*prefix, *_location(item["loc"])]) or "body",
            message=_message(item),
        )
        for item in error.errors()[:MAX_ERRORS]
    ]


def invalid(code: str, errors: list[FieldError]) -> Problem:
    """A 422 whose detail repeats the first of `errors`."""
    more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
    return Problem(422, code, f"{errors[0].field}: {errors[0].message}{more}", errors=errors)


def _location(parts: Iterable[int | str]) -> list[str]:
    """Field names without the body that they are in, which the caller knows."""
    names = [str(part) for part in parts]
    if names[:1] != ["body"]:
        return names
    return [] if len(names) == 2 and names[1].isdigit() else names[1:]  # a number: where the JSON breaks off


def _message(item: Any) -> str:
    if item["type"] == "json_invalid":
        return f"the body is not JSON: {item['ctx']['error']} at character {item['loc'][-1]}"
    if isinstance(item["input"], bytes):
        return "the body is not JSON: send it with Content-Type: application/json"
    # A whole object is no help beside the sentence that is about its fields.
    if item["type"] in ("missing", "value_error") or isinstance(item["input"], dict):
        return fault(item)
    shown = repr(item["input"])
    return fault(item, f" (it is {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'})")


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem, and give every request its id."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    for error in STORE_ERRORS:
        app.add_exception_handler(error, _on_store)
    app.add_exception_handler(Exception, _on_crash)
    app.add_middleware(RequestContext)


async def _on_http(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return _respond(request, error)
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"there is nothing at {_path(request.scope)}: the routes are listed in /openapi.json"
    elif error.status_code == 405:
        # Each method is a route of its own, and the router names only those of the first.
        headers["Allow"] = ", ".join(_allowed(request))
        detail = f"{request.method} is not allowed here: use {headers['Allow']}"
    code = "-".join(HTTPStatus(error.status_code).phrase.lower().split())
    return _respond(request, Problem(error.status_code, code, detail, headers=headers))


def _allowed(request: Request) -> list[str]:
    """The methods that the request's path has."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _respond(request, invalid("invalid-request", field_errors(error)))


async def _on_store(request: Request, error: Exception) -> Response:
    structlog.get_logger().error(
        "a store does not answer", error=repr(error), path=_path(request.scope), request_id=_id(request)
    )
    detail = "the database or the object store does not answer: send the request again in a while"
    headers = {"Retry-After": str(RETRY_STORE_SECONDS)}
    return _respond(request, Problem(503, "store-unavailable", detail, headers=headers))


async def _on_crash(request: Request, error: Exception) -> Response:
    structlog.get_logger().error(
        "request failed", exc_info=error, path=_path(request.scope), request_id=_id(request)
    )
    detail = "the server failed; nothing is known to be wrong with the request: report the request_id"
    return _respond(request, Problem(500, "internal-error", detail))


def _respond(request: Request, problem: Problem) -> Response:
    body = ProblemBody(
        type=f"urn:mdc:problem:{problem.code}",
        title=problem.code.replace("-", " ").capitalize(),
        status=problem.status_code,
        detail=problem.detail,
        instance=_path(request.scope),
        code=problem.code,
        errors=problem.errors,
        request_id=_id(request),
        **problem.extra,
    )
    headers = {**(problem.headers or {}), "X-Request-ID": _id(request), "Cache-Control": "no-store"}
    return JSONResponse(body.model_dump(), problem.status_code, headers, media_type=MEDIA_TYPE)


def _id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def _path(scope: Scope) -> str:
    """The path for logs and answers, whose length is the caller's choice; the URL as a whole may not even be one."""
    path = str(scope["path"])
    return path if len(path) <= _SHOWN else path[:_SHOWN] + "…"


def request_id_of(scope: Scope) -> str:
    """The id that the caller gave the request, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return secrets.token_hex(8)


def log_request(scope: Scope, status: int, started: float) -> None:
    """Log that a request is answered, which took since `started` on the clock of `time.perf_counter`."""
    _log.info(
        "request",
        method=scope["method"],
        path=_path(scope),
        route=getattr(scope.get("route"), "path", None),
        status=status,
        seconds=round(time.perf_counter() - started, 4),
    )


class RequestContext:
    """Gives every request an id (or keeps the caller's), logs it, and bounds its body."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is the application inside."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                log_request(scope, message["status"], started)
            await send(message)

        refusal = _refusal(scope)
        if refusal is not None:
            await _respond(Request(scope), refusal)(scope, receive, send_with_id)
            return
        bounded = receive if scope["path"] == UPLOAD_PATH else _bounded(receive)
        await self.app(scope, bounded, send_with_id)


def _refusal(scope: Scope) -> Problem | None:
    """Why a request is refused whatever it asks for."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        # PostgreSQL knows no such text, and no name or id of ours has it.
        return Problem(400, "invalid-request", "the URL has a NUL character: no name or id has one")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return Problem(
            431,
            "headers-too-large",
            f"the headers have more than {MAX_HEADER_BYTES} bytes: send shorter ones",
        )
    return None


def _bounded(receive: Receive) -> Receive:
    """`receive` that refuses a body of more than `MAX_BODY_BYTES`; an upload counts for itself."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise Problem(
                413, "body-too-large", f"the body has more than {MAX_BODY_BYTES} bytes: send a smaller one"
            )
        return message

    return limited


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, for its OpenAPI entry.

    400, for what cannot be read, 500 and 503 are always among them, and 429 where a key is asked for.
    """
    always = {400, 500, 503} | ({429} if 401 in statuses else set())
    seconds = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
    told: dict[int | str, dict[str, Any]] = {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted(always.union(statuses))
    }
    for status in told.keys() & {429, 503}:
        told[status]["headers"] = {"Retry-After": seconds}
    return told
