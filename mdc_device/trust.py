"""Whom a device believes: manifests signed by the keys that it has seen first, or was given beforehand.

The keys of a server are pinned with the first manifest that they sign (trust on first use). From then on a manifest
by another key, and one without a signature, is refused. New keys come by a way that the user trusts (`--keyset`), or
by themselves where two proofs meet: a pinned key has signed, and TLS tells that it is the same server which shows them.
That a key set holds a pinned key beside a new one proves nothing: anybody can write down a public key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from mdc_core import signing
from mdc_core.errors import ConfigError, MdcError, SignatureError
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
    http: httpx.Client, body: bytes, media_type: str, *, given: Keyset | None, pinned: Keyset | None
) -> tuple[bytes, Keyset | None]:
    """The manifest in an answer, once its signature is checked, and the keys to be pinned.

    It is checked with the keys that the user has `given`, else with those that are `pinned`, else with those that the
    server offers; a server that has none does not sign, and then no keys are returned. Raises `SignatureError`.
    """
    known = given if given is not None else pinned
    keyset = known if known is not None else _offered(http)
    if media_type.partition(";")[0].strip().lower() == JOSE:
        if keyset is None:
            raise SignatureError(f"{http.base_url} signs manifests, but offers no keys at /v1/keyset")
        token = body.decode("ascii", errors="replace").strip()
        text = _verified(token, keyset, known=known is not None)
        return text, keyset if given is not None or known is None else _renewed(http, token, keyset)
    if keyset is not None:
        raise SignatureError(
            f"{http.base_url} sent a manifest without a signature, though it has keys: something between this device "
            "and the server changes what is delivered; try again over another connection"
        )
    return body, None


def _verified(token: str, keyset: Keyset, *, known: bool) -> bytes:
    try:
        return signing.verify(token, keyset)
    except SignatureError as error:
        if not known:
            raise
        raise SignatureError(
            f"{error}; if the server has new keys, take its key set by a way that you trust and give it "
            "as --keyset FILE"
        ) from None


def _renewed(http: httpx.Client, token: str, pinned: Keyset) -> Keyset:
    """The keys to pin after one of the `pinned` ones has signed `token`: those that the server has now, over TLS."""
    if http.base_url.scheme != "https":
        return pinned
    try:
        offered = _offered(http)
        if offered is not None:
            signing.verify(token, offered)  # else it is a copy from before the key was made
            return offered
    except MdcError:
        pass  # the manifest is good, and the keys can wait for the next time
    return pinned


def _offered(http: httpx.Client) -> Keyset | None:
    """The key set that the server offers, None when it has none."""
    try:
        with wire.answer(http, "v1/keyset") as response:
            if http.base_url.scheme == "https" and response.url.scheme != "https":
                raise SignatureError(
                    f"{http.base_url} sends for its keys to {response.url}, which is not secure"
                )
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
