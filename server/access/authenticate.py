"""Authenticate requests by API key, against the cache or the database."""

from __future__ import annotations

from ipaddress import IPv6Network

from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from server.access.callers import Caller, KnownKeys, PresentedKey
from server.access.ratelimit import RateLimits
from server.access.tokens import check_key, present
from server.store import keys
from server.store.db import Database
from server.store.tables import utcnow
from server.web.problems import Problem


class Authenticator:
    """Checks API keys against the database, and caches valid ones."""

    def __init__(self, db: Database, secret_key: bytes, known_keys: KnownKeys, rates: RateLimits) -> None:
        """`secret_key` is the HMAC key."""
        self._db, self._secret_key = db, secret_key
        self.known_keys, self._rates = known_keys, rates

    def present(self, token: str) -> PresentedKey:
        """The lookup form of a token."""
        return present(self._secret_key, token)

    async def check(self, key: PresentedKey, scope: Scope) -> Caller:
        """The caller, confirmed by the database during this request.

        Raises `Problem` 401 for an invalid key, or 429 if its address has sent too many of them. A valid key is never
        refused, whoever guesses keys from the same address. Each request counts once: further calls for the same
        request raise the same error.
        """
        state = scope.setdefault("state", {})
        if "key_failure" in state:
            raise state["key_failure"]
        if "caller" not in state:
            try:
                state["caller"] = await self._checked(key, _address(scope))
            except Exception as failure:
                state["key_failure"] = failure
                raise
        caller: Caller = state["caller"]
        return caller

    async def _checked(self, key: PresentedKey, address: str) -> Caller:
        if self.known_keys.met(key):
            return await self._confirmed_or_counted(key, address)
        async with self._rates.turn(address):
            # Of concurrent requests with the same new key, the first has asked for all.
            known = self.known_keys.get(key)
            if known is not None:
                return known[0]
            return await self._confirmed_or_counted(key, address)

    async def _confirmed_or_counted(self, key: PresentedKey, address: str) -> Caller:
        """The caller, from the database. Raises `Problem` 401, which counts against the address."""
        caller = await run_in_threadpool(self.confirm, key) if key.key_id else None
        if caller is None:
            await self._rates.count_refused(address)
            raise unauthenticated("the API key is unknown, revoked or expired: ask for a new one")
        return caller

    def confirm(self, key: PresentedKey) -> Caller | None:
        """The caller, if the database confirms the key."""
        asked, now = self.known_keys.now(), utcnow()
        with self._db.read() as session:
            row = check_key(session, key)
        if row is None:
            if self.known_keys.met(key):  # not for a wrong secret with the id of a valid key
                self.known_keys.forget(key.key_id)
            return None
        if not keys.used_recently(row, now):
            with self._db.begin() as session:
                keys.mark_used(session, row.id, now)
        caller = Caller(row.id, frozenset(row.scopes))
        self.known_keys.put(caller, row.secret_hmac, row.expires_at, asked)
        return caller


def _address(scope: Scope) -> str:
    """The address that invalid keys count against. For IPv6 it is the /64: a subscriber has 2⁶⁴ addresses."""
    address = str((scope.get("client") or ("unknown",))[0])
    return str(IPv6Network((address.partition("%")[0], 64), strict=False)) if ":" in address else address


def unauthenticated(detail: str) -> Problem:
    """The response to a request without a valid key."""
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})
