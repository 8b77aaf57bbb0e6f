"""Trust and key pinning: whose manifests a device accepts.

The first manifest pins the server's keys (trust on first use). From then on, manifests without a signature or signed by
another key are refused. Over plain http, the first use proves nothing, and the user is told so. A server that does not
sign is only accepted with `--unsigned`.

New keys come from the user (`--keyset`), or automatically when two proofs agree: a pinned key signed the manifest, and
TLS proves that the same server offers the new keys. A key set that lists a pinned key beside a new one proves nothing,
because anybody can copy a public key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from mdc_core.delivery import signing
from mdc_core.delivery.local_key import is_here
from mdc_core.errors import ConfigError, MdcError, SignatureError
from mdc_device import wire
from mdc_device.errors import RefusedError

JOSE = "application/jose"
ACCEPT = f"{JOSE}, application/json;q=0.5"

Keyset = Mapping[str, Any]
"""A JWKS (RFC 7517)."""


GIVEN, HTTPS, LOCAL, HTTP, UNSIGNED = "given", "https", "local", "http", "unsigned"
"""Where the keys that signed a manifest came from: the user, or on first use the server over TLS, on this machine, or
over plain http; or nobody signed it."""
VOUCHED = frozenset({GIVEN, HTTPS, LOCAL})
"""Origins with which matching digests prove who made the bytes."""


class Opened(NamedTuple):
    """A trusted manifest."""

    text: bytes
    """Its bytes, as signed."""
    keyset: Keyset | None
    """The keys to pin."""
    trust: str
    """Where the keys came from."""


def at_first_use(url: str, keyset: Keyset | None) -> str:
    """The origin of keys that the server at `url` offered on first use."""
    if keyset is None:
        return UNSIGNED
    if url.startswith("https://"):
        return HTTPS
    return LOCAL if is_here(url) else HTTP


def read_keyset(path: Path) -> Keyset:
    """Read the key set in a file. Raises `ConfigError` if it is none."""
    try:
        return _keyset(path.read_bytes())
    except ValueError:
        raise ConfigError(
            f"{path} is not a key set: save the JSON that the server has at /v1/keyset"
        ) from None


def opened(
    http: httpx.Client, body: bytes, media_type: str, access: wire.Access, pinned: Keyset | None, trust: str
) -> Opened:
    """Check the signature of a manifest response; returns its bytes and the keys to pin.

    The keys are the user's, else the `pinned` ones (whose origin is `trust`), else those that the server offers. A
    server without keys does not sign, which `access` must allow. Raises `SignatureError`.
    """
    user_keys = access.keyset
    known = user_keys if user_keys is not None else pinned
    keyset = known if known is not None else _offered(http)
    if media_type.partition(";")[0].strip().lower() == JOSE:
        if keyset is None:
            raise SignatureError(
                f"{http.base_url} signs manifests, but offers no keys at /v1/keyset: try again later, or pass its keys "
                "with --keyset FILE"
            )
        token = body.decode("ascii", errors="replace").strip()
        text = _verified(token, keyset, known=known is not None)
        if user_keys is not None:
            return Opened(text, user_keys, GIVEN)
        if pinned is not None:
            return Opened(text, _renewed(http, token, pinned), trust)
        return Opened(text, keyset, at_first_use(str(http.base_url), keyset))
    if keyset is not None:
        raise SignatureError(
            f"{http.base_url} sent a manifest without a signature, though it has keys: a proxy between this device "
            "and the server changes responses; try another connection"
        )
    if not access.unsigned:
        raise SignatureError(
            f"{http.base_url} does not sign, so nothing proves who made its data: add --unsigned to accept it anyway"
        )
    return Opened(body, None, UNSIGNED)


def _verified(token: str, keyset: Keyset, *, known: bool) -> bytes:
    try:
        return signing.verify(token, keyset)
    except SignatureError as error:
        if not known:
            raise
        raise SignatureError(
            f"{error}; if the server has new keys, get its key set from a source you trust and pass it with "
            "--keyset FILE"
        ) from None


def _renewed(http: httpx.Client, token: str, pinned: Keyset) -> Keyset:
    """The keys to pin after a `pinned` key signed `token`: over TLS, those that the server has now."""
    if http.base_url.scheme != "https":
        return pinned
    try:
        offered = _offered(http)
        if offered is not None:
            signing.verify(token, offered)  # fails for a cached copy from before the signing key existed
            return offered
    except MdcError:
        pass  # the manifest is valid, and the new keys can wait
    return pinned


def _offered(http: httpx.Client) -> Keyset | None:
    """The key set that the server offers, None if it has none."""
    try:
        with wire.answer(http, "v1/keyset") as response:
            if http.base_url.scheme == "https" and response.url.scheme != "https":
                raise SignatureError(
                    f"{http.base_url} redirects for its keys to {response.url}, which is insecure: tell its operator"
                )
            return _keyset(wire.small_body(response))
    except ValueError:
        raise SignatureError(f"{http.base_url} has no key set at /v1/keyset: try again later") from None
    except RefusedError as error:
        if error.status == httpx.codes.NOT_FOUND:
            return None
        raise


def _keyset(text: bytes) -> Keyset:
    """Parse a key set; raises `ValueError` if it is none."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWKS")
    return document
