"""Signed manifests: compact JWS (RFC 7515) with Ed25519 (EdDSA, RFC 8037). Needs the package `cryptography`.

A key's id is its thumbprint (RFC 7638), so equal keys have equal ids. Ed25519 is deterministic, so signing the same
bytes with the same key gives the same token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mdc_core.errors import FormatError, SignatureError

ALGORITHM: Final = "EdDSA"
TYPE: Final = "mdc-manifest+json"
"""The header's `typ`: tokens signed for another purpose are refused."""
KEY_BYTES: Final = 32

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies signatures: 32 bytes. Raises `FormatError` for another length."""

    x: bytes

    def __post_init__(self) -> None:
        _check_length(self.x)

    @property
    def kid(self) -> str:
        """The key's id: its thumbprint (RFC 7638; RFC 8037 section 2 defines the members)."""
        members = {"crv": "Ed25519", "kty": "OKP", "x": _encode(self.x)}
        text = json.dumps(members, separators=(",", ":"), sort_keys=True)
        return _encode(hashlib.sha256(text.encode()).digest())

    def to_jwk(self) -> dict[str, str]:
        """The key as a JWK (RFC 8037 section 2)."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _encode(self.x),
            "kid": self.kid,
            "use": "sig",
            "alg": ALGORITHM,
        }


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs: a seed of 32 bytes, hidden from `repr`. Raises `FormatError` for another length."""

    seed: bytes = field(repr=False)
    public: PublicKey = field(init=False)

    def __post_init__(self) -> None:
        _check_length(self.seed)
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        object.__setattr__(self, "public", PublicKey(public))

    @property
    def kid(self) -> str:
        """The id of the key pair."""
        return self.public.kid

    def signature(self, data: bytes) -> bytes:
        """The Ed25519 signature (RFC 8032) of `data`, 64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)

    def to_jwk(self) -> dict[str, str]:
        """The key as a private JWK. Keep it secret."""
        return {**self.public.to_jwk(), "d": _encode(self.seed)}

    @classmethod
    def _from_members(cls, members: object) -> PrivateKey:
        if not isinstance(members, Mapping) or not _is_ed25519(members):
            raise FormatError(
                "a key is not a private Ed25519 JWK (kty OKP, crv Ed25519, x and d): restore the key file"
            )
        try:
            key, stated = cls(_decode(members.get("d"))), _decode(members.get("x"))
        except ValueError:
            raise FormatError("x or d of the private JWK is not base64url text: restore the key") from None
        if stated != key.public.x:
            raise FormatError("x and d of the private JWK are not a pair: restore the key")
        return key


def new_key() -> PrivateKey:
    """Generate a key from the system's random source."""
    return PrivateKey(Ed25519PrivateKey.generate().private_bytes_raw())


def dump_private_keys(keys: Iterable[PrivateKey]) -> str:
    """The keys as a private JWKS on one line, which `load_private_keys` reads. Keep it secret."""
    return json.dumps({"keys": [key.to_jwk() for key in keys]}, separators=(",", ":"))


def load_private_keys(text: str) -> tuple[PrivateKey, ...]:
    """Read the keys of a private JWKS in order, at least one. Raises `FormatError`, which repeats no secret."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError("the private JWKS is not JSON: restore the key file") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or not members:
        raise FormatError(
            'the private JWKS is not {"keys": [...]} with at least one key: restore the key file'
        )
    keys = tuple(PrivateKey._from_members(entry) for entry in members)
    if len({key.kid for key in keys}) != len(keys):
        raise FormatError("the private JWKS contains a key twice: remove one of them")
    return keys


def jwks(keys: Iterable[PublicKey]) -> dict[str, Any]:
    """The key set (RFC 7517 section 5) for `verify`."""
    return {"keys": [key.to_jwk() for key in keys]}


def sign(payload: bytes, key: PrivateKey) -> str:
    """Sign exactly these bytes as a compact JWS, with alg, kid and typ in its header."""
    header = json.dumps({"alg": ALGORITHM, "kid": key.kid, "typ": TYPE}, separators=(",", ":"))
    signed = f"{_encode(header.encode())}.{_encode(payload)}"
    return f"{signed}.{_encode(key.signature(signed.encode()))}"


def verify(token: str, keyset: Mapping[str, Any]) -> bytes:
    """Verify a compact JWS against `keyset` (a JWKS), and return its payload.

    Raises `SignatureError` if the token is malformed or of another type, the algorithm is not EdDSA (so `none` and HMAC
    are refused), the key is not in the set, or the signature does not match.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise SignatureError(
            f"the signed manifest has {len(parts)} parts separated by dots, not 3: fetch it again"
        )
    try:
        header = json.loads(_decode(parts[0]))
        payload, signature = _decode(parts[1]), _decode(parts[2])
    except (ValueError, RecursionError):
        raise SignatureError("the signed manifest is not base64url and JSON: fetch it again") from None
    if not isinstance(header, dict):
        raise SignatureError("the header of the signed manifest is not a JSON object: fetch it again")
    if header.get("alg") != ALGORITHM:
        raise SignatureError(
            f"the manifest is signed with alg {header.get('alg')!r}, but only {ALGORITHM} is accepted: do not use it"
        )
    if header.get("typ") != TYPE or "crit" in header:
        raise SignatureError(
            f"the token has typ {header.get('typ')!r} or extensions, but this release reads plain {TYPE!r}: update "
            "this software"
        )
    key = _find(keyset, header.get("kid"))
    try:
        key.verify(signature, f"{parts[0]}.{parts[1]}".encode())
    except InvalidSignature:
        raise SignatureError(
            f"the signature of the manifest does not match key {header['kid']}: do not use it, fetch it again"
        ) from None
    return payload


def _find(keyset: Mapping[str, Any], kid: object) -> Ed25519PublicKey:
    """The Ed25519 key with that id; keys of other kinds are skipped, as RFC 7517 section 5 requires."""
    entries = keyset.get("keys") if isinstance(keyset, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise SignatureError("the key set has no list 'keys': fetch /v1/keyset again")
    for entry in entries:
        if (
            isinstance(kid, str)
            and isinstance(entry, Mapping)
            and entry.get("kid") == kid
            and _is_ed25519(entry)
        ):
            try:
                return Ed25519PublicKey.from_public_bytes(PublicKey(_decode(entry.get("x"))).x)
            except (ValueError, FormatError):
                raise SignatureError(f"key {kid} of the key set is damaged: fetch /v1/keyset again") from None
    raise SignatureError(
        f"the manifest is signed by key {kid!r}, which is not in the key set: fetch /v1/keyset again"
    )


def _is_ed25519(members: Mapping[str, Any]) -> bool:
    return (
        members.get("kty") == "OKP"
        and members.get("crv") == "Ed25519"
        and members.get("use", "sig") == "sig"
        and members.get("alg", ALGORITHM) in (ALGORITHM, "Ed25519")
    )


def _check_length(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise FormatError(f"an Ed25519 key has {KEY_BYTES} bytes, this one {len(key)}")


def _encode(data: bytes) -> str:
    """base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: object) -> bytes:
    """Decode strict base64url; `ValueError` for anything but the canonical form.

    Python ignores invalid characters and unused bits, so several texts would otherwise decode to the same bytes.
    """
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encode(data) != text:
        raise ValueError("not the base64url of these bytes")
    return data
