"""API keys as requests and responses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field

from server.access.callers import SCOPES, Scope
from server.schemas.base import RequestBody, ResponseBody
from server.store.tables import ApiKey, utcnow

LONGEST_KEY = timedelta(days=36_500)
"""How far away the end of a key may be, if it has one."""


def _in_future(moment: datetime) -> datetime:
    """In UTC. Both bounds come before it: there are times that no other zone can tell."""
    now = utcnow()
    if moment <= now + timedelta(seconds=1):
        raise ValueError(f"{moment.isoformat()} has passed: give a time to come, or leave it out")
    if moment > now + LONGEST_KEY:
        years = LONGEST_KEY.days // 365
        raise ValueError(
            f"{moment.isoformat()} is more than {years} years away: give an earlier time, or leave it out"
        )
    return moment.astimezone(UTC)


class KeyRequest(RequestBody):
    """An API key to make."""

    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]
    """What it is for."""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))]
    """What it may do; `admin` implies the others."""
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_future)] | None = None
    """When it ceases to work, within 100 years; left out: never."""


class KeyResponse(ResponseBody):
    """An API key without its secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """The key as admins see it."""
        return cls.model_validate(key, from_attributes=True)


class NewKeyResponse(KeyResponse):
    """A key that was just made."""

    key: str
    """The key itself: it is shown this once."""
