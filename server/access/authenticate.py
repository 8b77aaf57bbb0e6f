"""API keys `mdc_<id>_<secret>`: made, checked, and asked for their scopes."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv6Network
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from server.access.callers import Caller, PresentedKey
from server.services import Services, ServicesDep
from server.settings import Settings, write_private
from server.store import keys
from server.store.tables import ApiKey, utcnow
from server.web.problems import Problem

_TOKEN = re.compile(r"mdc_([0-9a-f]{16})_")
_bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="An API key: `mdc_<id>_<secret>`.")


def create_key(
    session: Session, secret_key: bytes, *, name: str, scopes: list[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Add a key; returns its row and the key itself, which is known only now."""
    key_id = secrets.token_hex(8)
    token = f"mdc_{key_id}_{secrets.token_urlsafe(32)}"  # 256 random bits
    row = keys.add(
        session,
        key_id=key_id,
        name=name,
        secret_hmac=_hmac(secret_key, token),
        scopes=scopes,
        expires_at=expires_at,
    )
    return row, token


def present(secret_key: bytes, token: str) -> PresentedKey:
    """What is looked for in place of a token."""
    return PresentedKey(_key_id(token), _hmac(secret_key, token))


def check_key(session: Session, key: PresentedKey) -> ApiKey | None:
    """The key that was presented; None when it is unknown, revoked or expired."""
    if not key.key_id:
        return None
    row = keys.get(session, key.key_id)
    kept = row.secret_hmac if row is not None else "0" * 64
    if not hmac.compare_digest(kept, key.secret_hmac):
        return None
    return row if row is not None and keys.works(row, utcnow()) else None


def ensure_admin_key(settings: Settings, session: Session) -> None:
    """In the embedded mode make the first admin key, and write it to `data_dir`/admin.key (mode 0600).

    Nothing happens when an admin key that works is there already, or outside the embedded mode.
    """
    if not settings.embedded or keys.admins(session):
        return
    path = settings.data_dir / "admin.key"
    if path.exists():
        kept = path.with_name(f"admin.key.{utcnow():%Y%m%dT%H%M%SZ}")
        path.rename(kept)
        structlog.get_logger().warning(
            "no admin key of this database works: made a new one, and kept the former file", kept=str(kept)
        )
    _, token = create_key(session, settings.secret_key(), name="first admin key", scopes=["admin"])
    write_private(path, token, replace=True)


def _key_id(token: str) -> str:
    """The id in `mdc_<id>_<secret>`; empty when the token has another form, and then it is nobody's."""
    found = _TOKEN.match(token)
    return found[1] if found else ""


def _hmac(secret_key: bytes, token: str) -> str:
    begun = _begun(secret_key).copy()
    begun.update(token.encode())
    return begun.hexdigest()


@lru_cache(1)
def _begun(secret_key: bytes) -> hmac.HMAC:
    """The HMAC before its message; to begin takes longer than all the rest."""
    return hmac.new(secret_key, digestmod="sha256")


async def _caller(
    request: Request,
    needed: SecurityScopes,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The caller, who has every scope that the route needs.

    Only who reads subsets is let in by memory, for the few seconds of `TRUST_SECONDS`.
    """
    credentials = _sent(credentials)
    only_reads = needed.scopes == ["subsets:read"]
    key = present(services.secret_key, credentials.credentials)
    known = services.known_keys.get(key) if only_reads else None
    caller = await checked_caller(services, key, request.scope) if known is None else known[0]
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
        raise _unauthenticated("no API key was sent: add the header Authorization: Bearer mdc_…")
    return credentials


class KeyBeforeBody(APIRoute):
    """A route whose body is read only when the key works: what a stranger sends is not kept in memory.

    FastAPI reads the body before it asks for anything else.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, behind the key."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle(request: Request) -> Response:
            services: Services = request.app.state.services
            key = present(services.secret_key, _sent(await _bearer(request)).credentials)
            if services.known_keys.get(key) is None:
                await checked_caller(services, key, request.scope)
            return await handler(request)

        return handle


async def checked_caller(services: Services, key: PresentedKey, scope: Scope) -> Caller:
    """The caller whose key the database has confirmed since the request came.

    `Problem` 401, or 429 for one that does not work from an address that guesses. A key that works is never refused,
    whoever guesses from the same address. A request that fails is counted once: who asks again on its
    behalf gets the same answer.
    """
    state = scope.setdefault("state", {})
    if "key_failure" in state:
        raise state["key_failure"]
    if "caller" not in state:
        try:
            state["caller"] = await _checked(services, key, _address(scope))
        except Exception as failure:
            state["key_failure"] = failure
            raise
    caller: Caller = state["caller"]
    return caller


async def _checked(services: Services, key: PresentedKey, address: str) -> Caller:
    if services.known_keys.met(key):
        return await _confirmed_or_counted(services, key, address)
    async with services.rates.turn(address):
        # Of requests that come together with the same new key the first has asked for all.
        known = services.known_keys.get(key)
        if known is not None:
            return known[0]
        return await _confirmed_or_counted(services, key, address)


def _address(scope: Scope) -> str:
    """Whom guesses are counted against: an address, or all of a subscriber's, as IPv6 gives away 2⁶⁴ at once."""
    address = str((scope.get("client") or ("unknown",))[0])
    return str(IPv6Network((address.partition("%")[0], 64), strict=False)) if ":" in address else address


async def _confirmed_or_counted(services: Services, key: PresentedKey, address: str) -> Caller:
    """The caller as the database says. `Problem` 401, which counts against the address."""
    caller = await run_in_threadpool(confirmed_caller, services, key) if key.key_id else None
    if caller is None:
        await services.rates.count_refused(address)
        raise _unauthenticated("the API key is unknown, revoked or expired: ask for a new one")
    return caller


def confirmed_caller(services: Services, key: PresentedKey) -> Caller | None:
    """The caller, if the database confirms the key."""
    asked, now = services.known_keys.now(), utcnow()
    with services.db.read() as session:
        row = check_key(session, key)
    if row is None:
        if services.known_keys.met(key):  # not for a wrong secret with the id of a right one
            services.known_keys.forget(key.key_id)
        return None
    if not keys.used_recently(row, now):
        with services.db.begin() as session:
            keys.mark_used(session, row.id, now)
    caller = Caller(row.id, frozenset(row.scopes))
    services.known_keys.put(caller, row.secret_hmac, row.expires_at, asked)
    return caller


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})


JobsReader = Annotated[Caller, Security(_caller, scopes=["jobs:read"])]
JobsWriter = Annotated[Caller, Security(_caller, scopes=["jobs:write"])]
SubsetsReader = Annotated[Caller, Security(_caller, scopes=["subsets:read"])]
Admin = Annotated[Caller, Security(_caller, scopes=["admin"])]
