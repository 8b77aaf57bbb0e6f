"""Whom a device believes: manifests signed by the keys that it has seen first, or was given beforehand.

The keys of a server are pinned with the first manifest that they sign (trust on first use). From then on a manifest
by another key, and one without a signature, is refused; new keys come by a way that the user trusts (`--keyset`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from mdc_core import signing
from mdc_core.errors import ConfigError, SignatureError
from mdc_device import wire
from mdc_device.errors import RefusedError

JOSE = "application/jose"
ACCEPT = f"{JOSE}, application/json;q=0.5"

Keyset = Mapping[str, Any]
"""A JWKS (RFC 7517)."""


def read_keyset(path: Path) -> Keyset:
    """The key set in a file. `ConfigError` when it is none."""
    try:
        return _keyset(path.read_bytes())
    except ValueError:
        raise ConfigError(f"{path} is no key set: give the JSON that the server has at /v1/keyset") from None


def opened(
    http: httpx.Client, body: bytes, media_type: str, pinned: Keyset | None
) -> tuple[bytes, Keyset | None]:
    """The manifest in an answer, once its signature is checked, and the keys that were used for it.

    Without `pinned` keys those of the server are asked for; a server that has none does not sign, and then no keys
    are returned. Raises `SignatureError`.
    """
    keyset = pinned if pinned is not None else _offered(http)
    if media_type.partition(";")[0].strip().lower() == JOSE:
        if keyset is None:
            raise SignatureError(f"{http.base_url} signs manifests, but offers no keys at /v1/keyset")
        return _verified(body, keyset, given=pinned is not None), keyset
    if keyset is not None:
        raise SignatureError(
            f"{http.base_url} sent a manifest without a signature, though it has keys: something between this device "
            "and the server changes what is delivered; try again over another connection"
        )
    return body, None


def _verified(token: bytes, keyset: Keyset, *, given: bool) -> bytes:
    try:
        return signing.verify(token.decode("ascii", errors="replace").strip(), keyset)
    except SignatureError as error:
        if not given:
            raise
        raise SignatureError(
            f"{error}; if the server has new keys, take its key set by a way that you trust and give it "
            "as --keyset FILE"
        ) from None


def _offered(http: httpx.Client) -> Keyset | None:
    """The key set that the server offers, None when it has none."""
    try:
        with wire.answer(http, "v1/keyset") as response:
            return _keyset(wire.small_body(response))
    except ValueError:
        raise SignatureError(f"{http.base_url} has no key set at /v1/keyset: try again later") from None
    except RefusedError as error:
        if error.status == httpx.codes.NOT_FOUND:
            return None
        raise


def _keyset(text: bytes) -> Keyset:
    """The key set that these bytes are; `ValueError` when they are none."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWKS")
    return document
