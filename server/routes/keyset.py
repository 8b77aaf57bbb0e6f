"""The public keys of signed manifests."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from mdc_core.delivery.signing import jwks
from server.routes.deps import ServicesDep
from server.schemas.base import ResponseBody
from server.web.problems import responses

router = APIRouter(prefix="/v1/keyset", tags=["sets"])

SECONDS = 300
"""How long the key set may be kept: a new key should be published for that time before it signs."""


class PublicJwk(ResponseBody):
    """An Ed25519 key (RFC 8037)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    """The 32 bytes of the key in base64url."""
    kid: str
    """Its thumbprint (RFC 7638), which the header of a signed manifest names."""
    use: Literal["sig"]
    alg: Literal["EdDSA"]


class Keyset(ResponseBody):
    """A JWKS (RFC 7517)."""

    keys: list[PublicJwk] = Field(min_length=1)


@router.get("", operation_id="getKeyset", response_model=Keyset, responses=responses())
async def get_keyset(response: Response, services: ServicesDep) -> dict[str, Any]:
    """The keys that manifests are signed with, now or formerly. No API key is needed."""
    response.headers["Cache-Control"] = f"public, max-age={SECONDS}"
    return jwks(key.public for key in services.manifest_keys)
