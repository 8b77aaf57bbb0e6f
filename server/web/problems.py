"""Every error as `application/problem+json` (RFC 9457), with a stable `code` and the request's id."""

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
"""Maximum body size of a request that is not an upload."""
MAX_HEADER_BYTES = 2**15
"""Maximum total size of a request's header names and values; nginx's default limit."""
MAX_ERRORS = 100
"""Maximum number of field errors in a response."""
UPLOAD_PATH = "/v1/datasets"
RETRY_STORE_SECONDS = 10
"""`Retry-After` while a store is unavailable."""

_log = structlog.get_logger()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHOWN = 200
"""Maximum length of a value or path shown in a message."""


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
    """An error that becomes a problem response. `extra` are additional members of the body."""

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
    """The response to an unknown id. An id of another owner gets the same one, so that ids cannot be probed."""
    return Problem(404, "not-found", f"there is no {what}")


def field_errors(error: ValidationError | RequestValidationError, *prefix: str) -> list[FieldError]:
    """Pydantic's errors, one entry per field, with `prefix` before the field names."""
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
    """Field names without the leading `body`."""
    names = [str(part) for part in parts]
    if names[:1] != ["body"]:
        return names
    return (
        [] if len(names) == 2 and names[1].isdigit() else names[1:]
    )  # number: position of a JSON syntax error


def _message(item: Any) -> str:
    if item["type"] == "json_invalid":
        return f"the body is not JSON: {item['ctx']['error']} at character {item['loc'][-1]}"
    if isinstance(item["input"], bytes):
        return "the body is not JSON: send it with Content-Type: application/json"
    # Do not show a whole object: the message is about its fields.
    if item["type"] in ("missing", "value_error") or isinstance(item["input"], dict):
        return fault(item)
    shown = repr(item["input"])
    return fault(item, f" (it is {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'})")


def install(app: FastAPI) -> None:
    """Turn every error of the application into a problem, and give every request an id."""
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
        # Each method is a separate route, and the router's Allow header names only the first route's methods.
        headers["Allow"] = ", ".join(_allowed(request))
        detail = f"{request.method} is not allowed here: use {headers['Allow']}"
    code = "-".join(HTTPStatus(error.status_code).phrase.lower().split())
    return _respond(request, Problem(error.status_code, code, detail, headers=headers))


def _allowed(request: Request) -> list[str]:
    """The methods of the request's path."""
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
    detail = "the server failed, probably not because of the request: report the request_id"
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
    """The path for logs and responses, shortened. Not the whole URL: that may be invalid."""
    path = str(scope["path"])
    return path if len(path) <= _SHOWN else path[:_SHOWN] + "…"


def request_id_of(scope: Scope) -> str:
    """The caller's request id if it is valid, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return secrets.token_hex(8)


def log_request(scope: Scope, status: int, started: float) -> None:
    """Log a finished request. `started` is a value of `time.perf_counter`."""
    _log.info(
        "request",
        method=scope["method"],
        path=_path(scope),
        route=getattr(scope.get("route"), "path", None),
        status=status,
        seconds=round(time.perf_counter() - started, 4),
    )


class RequestContext:
    """Gives every request an id (or keeps the caller's), logs it, and limits its body."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is the wrapped application."""
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
    """A problem that applies to any path, or None."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        # PostgreSQL refuses such text, and no name or id contains it.
        return Problem(400, "invalid-request", "the URL has a NUL character: no name or id has one")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return Problem(
            431,
            "headers-too-large",
            f"the headers have more than {MAX_HEADER_BYTES} bytes: send shorter ones",
        )
    return None


def _bounded(receive: Receive) -> Receive:
    """`receive` that refuses bodies above `MAX_BODY_BYTES`. Uploads have their own limit."""
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

    400, 500 and 503 are always included, and 429 if the route needs a key.
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
