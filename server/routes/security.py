"""Who may call a route: scopes as dependencies, and keys that are checked before bodies are read."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from server.access.authenticate import unauthenticated
from server.access.callers import Caller
from server.routes.deps import ServicesDep
from server.services import Services
from server.web.problems import Problem

_bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="An API key: `mdc_<id>_<secret>`.")


async def _caller(
    request: Request,
    needed: SecurityScopes,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The caller, with every scope that the route requires.

    Only who reads subsets is let in by memory, for the few seconds of `TRUST_SECONDS`.
    """
    only_reads = needed.scopes == ["subsets:read"]
    key = services.authenticator.present(_sent(credentials).credentials)
    known = services.authenticator.known_keys.get(key) if only_reads else None
    caller = await services.authenticator.check(key, request.scope) if known is None else known[0]
    structlog.contextvars.bind_contextvars(key_id=caller.key_id)
    if not only_reads:
        await services.rates.use(caller.key_id)
    missing = [scope for scope in needed.scopes if not caller.may(scope)]
    if missing:
        raise Problem(
            403, "scope-missing", f"the API key {caller.key_id} lacks the scope {', '.join(missing)}"
        )
    return caller


def _sent(credentials: HTTPAuthorizationCredentials | None) -> HTTPAuthorizationCredentials:
    if credentials is None:
        raise unauthenticated("no API key was sent: add the header Authorization: Bearer mdc_…")
    return credentials


class KeyBeforeBody(APIRoute):
    """A route that reads the body only after the key is valid, so that strangers cannot fill the memory.

    FastAPI reads the body before it asks for anything else.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, behind the key."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle(request: Request) -> Response:
            services: Services = request.app.state.services
            key = services.authenticator.present(_sent(await _bearer(request)).credentials)
            if services.authenticator.known_keys.get(key) is None:
                await services.authenticator.check(key, request.scope)
            return await handler(request)

        return handle


JobsReader = Annotated[Caller, Security(_caller, scopes=["jobs:read"])]
JobsWriter = Annotated[Caller, Security(_caller, scopes=["jobs:write"])]
SubsetsReader = Annotated[Caller, Security(_caller, scopes=["subsets:read"])]
Admin = Annotated[Caller, Security(_caller, scopes=["admin"])]
