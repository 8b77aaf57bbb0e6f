"""API keys as rows; `server.access.authenticate` makes and checks the secrets."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from server.store.tables import ApiKey, utcnow

USED_EVERY = timedelta(minutes=1)
"""`last_used_at` is written at most this often: reading must not cost a write each time."""


def add(
    session: Session,
    *,
    key_id: str,
    name: str,
    secret_hmac: str,
    scopes: list[str],
    expires_at: datetime | None,
) -> ApiKey:
    """Add a key."""
    key = ApiKey(id=key_id, name=name, secret_hmac=secret_hmac, scopes=scopes, expires_at=expires_at)
    session.add(key)
    session.flush()
    return key


def get(session: Session, key_id: str) -> ApiKey | None:
    """The key, whether or not it still works."""
    return session.get(ApiKey, key_id)


def lock(session: Session, key_id: str) -> None:
    """Let concurrent transactions that count what the key has wait for each other until they commit."""
    # Not FOR UPDATE: that would also wait for whoever adds a row that belongs to the key.
    session.execute(select(ApiKey.id).where(ApiKey.id == key_id).with_for_update(key_share=True))


def page(session: Session, *, after: str | None, limit: int) -> list[ApiKey]:
    """Up to `limit` keys whose ids follow `after`, by id."""
    query = select(ApiKey).order_by(ApiKey.id).limit(limit)
    if after is not None:
        query = query.where(ApiKey.id > after)
    return list(session.scalars(query))


def works(key: ApiKey, now: datetime) -> bool:
    """Whether the key is neither revoked nor expired."""
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def admins(session: Session, *, lock: bool = False) -> list[ApiKey]:
    """Keys with the scope `admin` that still work; with `lock` no other transaction can revoke one meanwhile."""
    now = utcnow()
    query = select(ApiKey).where(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    )
    if lock:  # in one order, so that two do not wait for each other
        query = query.order_by(ApiKey.id).with_for_update()
    return [key for key in session.scalars(query) if "admin" in key.scopes]


def revoke(session: Session, key_id: str) -> None:
    """Make the key useless from now on; a second time changes nothing."""
    session.execute(
        update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=utcnow())
    )


def used_recently(key: ApiKey, now: datetime) -> bool:
    """Whether `last_used_at` is new enough to be left as it is."""
    return key.last_used_at is not None and now - key.last_used_at < USED_EVERY


def mark_used(session: Session, key_id: str, now: datetime) -> None:
    """Set `last_used_at`."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))
