"""Rows of API keys. Their secrets are made and checked in `server.access`."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from server.store.tables import ApiKey, utcnow

USED_EVERY = timedelta(minutes=1)
"""`last_used_at` is written at most this often, so that not every read costs a write."""


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
    """The key, valid or not."""
    return session.get(ApiKey, key_id)


def lock(session: Session, key_id: str) -> None:
    """Serialise the transactions that check this key's quotas."""
    # Not FOR UPDATE: that would also wait for transactions that insert rows with this foreign key.
    session.execute(select(ApiKey.id).where(ApiKey.id == key_id).with_for_update(key_share=True))


def page(session: Session, *, after: str | None, limit: int) -> list[ApiKey]:
    """Up to `limit` keys after the id `after`, ordered by id."""
    query = select(ApiKey).order_by(ApiKey.id).limit(limit)
    if after is not None:
        query = query.where(ApiKey.id > after)
    return list(session.scalars(query))


def works(key: ApiKey, now: datetime) -> bool:
    """Whether the key is neither revoked nor expired."""
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def admins(session: Session, *, lock: bool = False) -> list[ApiKey]:
    """Valid keys with the scope `admin`. `lock` keeps other transactions from revoking one meanwhile."""
    now = utcnow()
    query = select(ApiKey).where(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    )
    if lock:  # in a fixed order, to avoid deadlocks
        query = query.order_by(ApiKey.id).with_for_update()
    return [key for key in session.scalars(query) if "admin" in key.scopes]


def revoke(session: Session, key_id: str) -> None:
    """Revoke the key. Revoking twice changes nothing."""
    session.execute(
        update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=utcnow())
    )


def used_recently(key: ApiKey, now: datetime) -> bool:
    """Whether `last_used_at` is recent enough to need no update."""
    return key.last_used_at is not None and now - key.last_used_at < USED_EVERY


def mark_used(session: Session, key_id: str, now: datetime) -> None:
    """Set `last_used_at`."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))
