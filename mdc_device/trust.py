"""Whom a device believes: manifests signed by the keys that it has seen first, or was given beforehand.

The keys of a server are pinned with the first manifest that they sign (trust on first use). From then on a manifest
by another key, and one without a signature, is refused. Over plain http the first use proves nothing, and is told; a
server that does not sign is only believed by those who say so (`--unsigned`). New keys come by a way that the user
trusts (`--keyset`), or by themselves where two proofs meet: a pinned key has signed, and TLS tells that it is the same
server which shows them. That a key set holds a pinned key beside a new one proves nothing: anybody can write down a
public key.
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
"""Where the keys came from that vouch for a manifest: from the user, or at first use from the server over TLS, from one
on this machine, or over plain http; or nobody vouches."""
VOUCHED = frozenset({GIVEN, HTTPS, LOCAL})
"""Those with which right digests tell who made the bytes."""


class Opened(NamedTuple):
    """A manifest that is to be believed."""

    text: bytes
    """Its bytes, as they were signed."""
    keyset: Keyset | None
    """The keys to be pinned."""
    trust: str
    """Where they came from."""


def at_first_use(url: str, keyset: Keyset | None) -> str:
    """What vouches for the keys that the server at `url` showed."""
    if keyset is None:
        return UNSIGNED
    if url.startswith("https://"):
        return HTTPS
    return LOCAL if is_here(url) else HTTP


def read_keyset(path: Path) -> Keyset:
    """The key set in a file. `ConfigError` when it is none."""
    try:
        return _keyset(path.read_bytes())
    except ValueError:
        raise ConfigError(f"{path} is no key set: give the JSON that the server has at /v1/keyset") from None


def opened(
    http: httpx.Client, body: bytes, media_type: str, access: wire.Access, pinned: Keyset | None, trust: str
) -> Opened:
    """The manifest in an answer, once its signature is checked, and the keys to be pinned.

    It is checked with the keys that the user gave, else with those that are `pinned`, of which `trust` tells where they
    came from, else with those that the server offers. A server that has none does not sign: it must be allowed to.
    Raises `SignatureError`.
    """
    given = access.keyset
    known = given if given is not None else pinned
    keyset = known if known is not None else _offered(http)
    if media_type.partition(";")[0].strip().lower() == JOSE:
        if keyset is None:
            raise SignatureError(f"{http.base_url} signs manifests, but offers no keys at /v1/keyset")
        token = body.decode("ascii", errors="replace").strip()
        text = _verified(token, keyset, known=known is not None)
        if given is not None:
            return Opened(text, given, GIVEN)
        if pinned is not None:
            return Opened(text, _renewed(http, token, pinned), trust)
        return Opened(text, keyset, at_first_use(str(http.base_url), keyset))
    if keyset is not None:
        raise SignatureError(
            f"{http.base_url} sent a manifest without a signature, though it has keys: something between this device "
            "and the server changes what is delivered; try again over another connection"
        )
    if not access.unsigned:
        raise SignatureError(
            f"{http.base_url} signs nothing, so nobody vouches for what it sends: give --unsigned to take it all the "
            "same"
        )
    return Opened(body, None, UNSIGNED)


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
