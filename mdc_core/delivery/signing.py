"""Signed manifests: compact JWS (RFC 7515) with Ed25519 (EdDSA, RFC 8037). Needs the package `cryptography`.

A key's id is its thumbprint (RFC 7638), so equal keys have equal ids. Equal bytes signed by the same key are
equal tokens, as Ed25519 draws nothing at random.
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
"""The header's `typ`: a token that was signed for another purpose is refused."""
KEY_BYTES: Final = 32

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True)
class PublicKey:
    """What checks a signature: 32 bytes. `FormatError` for another length."""

    x: bytes

    def __post_init__(self) -> None:
        _check_length(self.x)

    @property
    def kid(self) -> str:
        """The key's id: its thumbprint (RFC 7638, and RFC 8037 section 2 for the members that count)."""
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
    """What makes a signature: a seed of 32 bytes, which is not shown. `FormatError` for another length."""

    seed: bytes = field(repr=False)
    public: PublicKey = field(init=False)

    def __post_init__(self) -> None:
        _check_length(self.seed)
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        object.__setattr__(self, "public", PublicKey(public))

    @property
    def kid(self) -> str:
        """The id of both halves of the key."""
        return self.public.kid

    def signature(self, data: bytes) -> bytes:
        """The 64 bytes that Ed25519 (RFC 8032) gives for `data`."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)

    def to_jwk(self) -> dict[str, str]:
        """The key as a private JWK. Keep it secret."""
        return {**self.public.to_jwk(), "d": _encode(self.seed)}

    @classmethod
    def _from_members(cls, members: object) -> PrivateKey:
        if not isinstance(members, Mapping) or not _is_ed25519(members):
            raise FormatError("this is no private Ed25519 JWK: it takes kty OKP, crv Ed25519, x and d")
        try:
            key, stated = cls(_decode(members.get("d"))), _decode(members.get("x"))
        except ValueError:
            raise FormatError("x or d of the private JWK is not base64url text: restore the key") from None
        if stated != key.public.x:
            raise FormatError("x and d of the private JWK do not belong together: restore the key")
        return key


def new_key() -> PrivateKey:
    """A key from the system's randomness."""
    return PrivateKey(Ed25519PrivateKey.generate().private_bytes_raw())


def dump_private_keys(keys: Iterable[PrivateKey]) -> str:
    """Text of a private JWKS on one line, which `load_private_keys` reads. Keep it secret."""
    return json.dumps({"keys": [key.to_jwk() for key in keys]}, separators=(",", ":"))


def load_private_keys(text: str) -> tuple[PrivateKey, ...]:
    """The keys of a private JWKS in its order, at least one; `FormatError`, which repeats nothing of them."""
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
        raise FormatError("a key is twice in the private JWKS: take one of them out")
    return keys


def jwks(keys: Iterable[PublicKey]) -> dict[str, Any]:
    """The key set (RFC 7517 section 5) that `verify` takes."""
    return {"keys": [key.to_jwk() for key in keys]}


def sign(payload: bytes, key: PrivateKey) -> str:
    """Compact JWS of exactly these bytes, with alg, kid and typ in its header."""
    header = json.dumps({"alg": ALGORITHM, "kid": key.kid, "typ": TYPE}, separators=(",", ":"))
    signed = f"{_encode(header.encode())}.{_encode(payload)}"
    return f"{signed}.{_encode(key.signature(signed.encode()))}"


def verify(token: str, keyset: Mapping[str, Any]) -> bytes:
    """The payload of a compact JWS that a key of `keyset` (a JWKS) has signed.

    Raises `SignatureError` for a token that is malformed or of another type, another algorithm than EdDSA
    (`none` and every HMAC among them), a key that is not in the set, and a signature that is not the key's.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise SignatureError(
            f"the signed manifest has {len(parts)} parts between dots, not 3: fetch it again"
        )
    try:
        header = json.loads(_decode(parts[0]))
        payload, signature = _decode(parts[1]), _decode(parts[2])
    except (ValueError, RecursionError):
        raise SignatureError("the signed manifest is not base64url text and JSON: fetch it again") from None
    if not isinstance(header, dict):
        raise SignatureError("the header of the signed manifest is no JSON object: fetch it again")
    if header.get("alg") != ALGORITHM:
        raise SignatureError(
            f"the manifest is signed with alg {header.get('alg')!r}: only {ALGORITHM} is accepted"
        )
    if header.get("typ") != TYPE or "crit" in header:
        raise SignatureError(
            f"the token is of typ {header.get('typ')!r} or has extensions: this release reads plain {TYPE!r}"
        )
    key = _find(keyset, header.get("kid"))
    try:
        key.verify(signature, f"{parts[0]}.{parts[1]}".encode())
    except InvalidSignature:
        raise SignatureError(
            f"the signature of the manifest is not that of key {header['kid']}: do not use it, fetch it again"
        ) from None
    return payload


def _find(keyset: Mapping[str, Any], kid: object) -> Ed25519PublicKey:
    """The Ed25519 key of that id; keys of other kinds are passed over, as RFC 7517 section 5 asks."""
    entries = keyset.get("keys") if isinstance(keyset, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise SignatureError("the key set holds no list 'keys': fetch /v1/keyset again")
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
    raise SignatureError(f"the manifest is signed by key {kid!r}, which the key set does not hold: renew it")


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
    """The bytes of which `text` is the one base64url writing; `ValueError` for everything else.

    Python skips characters that are not base64 and bits that no byte holds, so that many texts would mean the
    same bytes.
    """
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encode(data) != text:
        raise ValueError("not the base64url of these bytes")
    return data
