"""API keys `mdc_<id>_<secret>`: creation, and comparison with the stored HMAC."""

from __future__ import annotations

import hmac
import re
import secrets
from datetime import datetime
from functools import lru_cache

import structlog
from sqlalchemy.orm import Session

from server.access.callers import PresentedKey
from server.settings import Settings, write_private
from server.store import keys
from server.store.tables import ApiKey, utcnow

_TOKEN = re.compile(r"mdc_([0-9a-f]{16})_")


def create_key(
    session: Session, secret_key: bytes, *, name: str, scopes: list[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Add a key. Returns its row and the key itself, which is not stored."""
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
    """The lookup form of a token."""
    return PresentedKey(_key_id(token), _hmac(secret_key, token))


def check_key(session: Session, key: PresentedKey) -> ApiKey | None:
    """The row of a presented key; None if it is unknown, revoked or expired."""
    if not key.key_id:
        return None
    row = keys.get(session, key.key_id)
    kept = row.secret_hmac if row is not None else "0" * 64
    if not hmac.compare_digest(kept, key.secret_hmac):
        return None
    return row if row is not None and keys.works(row, utcnow()) else None


def ensure_admin_key(settings: Settings, session: Session) -> None:
    """In embedded mode, create the first admin key and write it to `data_dir`/admin.key (mode 0600).

    Does nothing if a valid admin key exists, or outside embedded mode.
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
    """The id in `mdc_<id>_<secret>`; empty if the token has another form, so that no row matches."""
    found = _TOKEN.match(token)
    return found[1] if found else ""


def _hmac(secret_key: bytes, token: str) -> str:
    begun = _begun(secret_key).copy()
    begun.update(token.encode())
    return begun.hexdigest()


@lru_cache(1)
def _begun(secret_key: bytes) -> hmac.HMAC:
    """The HMAC before its message, cached because the setup takes longer than the rest."""
    return hmac.new(secret_key, digestmod="sha256")
