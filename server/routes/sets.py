"""Condensed sets: list, describe, look at."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Header, Path, Response

from mdc_core import rankmajor
from mdc_core.manifest import parse_manifest
from mdc_core.preview import LARGEST_SIDE, preview_png
from server.auth import SubsetsReader
from server.conditional import matches, prefers
from server.deps import AfterQuery, LimitQuery, Services, ServicesDep
from server.manifests import JOSE, JSON, expiry, write_manifest
from server.problems import not_found, responses
from server.schemas import Page, SetOut
from server.store import sets
from server.store.ids import to_cursor
from server.store.tables import CondensedSet, utcnow

router = APIRouter(prefix="/v1/sets", tags=["sets"])

_REFERENCE = re.compile(r"([a-z0-9][a-z0-9-]{0,62})(?:@([1-9][0-9]{0,8}))?")

SetReference = Annotated[
    str, Path(max_length=80, description="`name` for the latest version, or `name@version`.")
]
IfNoneMatch = Annotated[str | None, Header(max_length=4096)]


def find_set(services: Services, reference: str) -> tuple[CondensedSet, bool]:
    """The version that `name` or `name@version` means, and whether the version was named. `Problem` 404."""
    parts = _REFERENCE.fullmatch(reference)
    if parts is not None:
        version = None if parts[2] is None else int(parts[2])
        with services.db.read() as session:
            row = sets.get(session, parts[1], version)
        if row is not None:
            return row, version is not None
    raise not_found(f"condensed set {reference!r}")


@router.get("", operation_id="listSets", response_model=Page[SetOut], responses=responses(401, 403, 422))
def list_sets(
    caller: SubsetsReader, services: ServicesDep, after: AfterQuery, limit: LimitQuery = 20
) -> Page[SetOut]:
    """The latest version of every set, by name."""
    with services.db.read() as session:
        found = sets.page(session, after=after, limit=limit + 1)
    more = len(found) > limit
    data = [SetOut.of(row) for row in found[:limit]]
    return Page(data=data, has_more=more, next_cursor=to_cursor(data[-1].name) if more else None)


@router.get("/{name}", operation_id="getSet", response_model=SetOut, responses=responses(401, 403, 404, 422))
def get_set(name: SetReference, caller: SubsetsReader, services: ServicesDep) -> SetOut:
    """A version of a set."""
    row, _ = find_set(services, name)
    return SetOut.of(row)


@router.get(
    "/{name}/manifest",
    operation_id="getManifest",
    response_class=Response,
    responses={
        200: {
            "description": "The manifest; with `Accept: application/jose` the compact JWS of the same bytes.",
            "content": {
                JSON: {"schema": {"type": "object"}},
                JOSE: {"schema": {"type": "string", "pattern": r"^[\w-]+\.[\w-]+\.[\w-]+$"}},
            },
        },
        304: {"description": "Not Modified"},
        **responses(401, 403, 404, 422),
    },
)
def get_manifest(
    name: SetReference,
    caller: SubsetsReader,
    services: ServicesDep,
    accept: Annotated[str | None, Header(max_length=4096)] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """What a device must know before it fetches: shape, digests, accuracy per k, cost of training.

    Its signature is checked with the keys of `/v1/keyset`; it must not be used after its `expires`.
    """
    row, pinned = find_set(services, name)
    expires = expiry(utcnow(), services.settings.manifest_days)
    manifest = write_manifest(row.manifest, services.manifest_keys[0], expires)
    written = manifest.jose if prefers(accept, JOSE, JSON) else manifest.json
    headers = {
        "ETag": written.etag,
        "Vary": "Accept",
        "Cache-Control": "private, max-age=300" if pinned else "private, max-age=60",
        "Content-Location": f"/v1/sets/{row.name}@{row.version}/manifest",
    }
    if if_none_match is not None and matches(if_none_match, written.etag, weak=True):
        return Response(status_code=304, headers=headers)
    return Response(written.body, headers=headers, media_type=written.media_type)


@router.get(
    "/{name}/preview.png",
    operation_id="getPreview",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "Not Modified"},
        **responses(401, 403, 404, 422),
    },
)
def get_preview(
    name: SetReference,
    caller: SubsetsReader,
    services: ServicesDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The set as a picture: a row per class, a column per rank, as many as 2400 pixels each way hold."""
    row, pinned = find_set(services, name)
    etag = f'"preview-{row.manifest["object"]["sha256"]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, immutable, max-age=31536000" if pinned else "private, max-age=60",
        "Content-Location": f"/v1/sets/{row.name}@{row.version}/preview.png",
    }
    if if_none_match is not None and matches(if_none_match, etag, weak=True):
        return Response(status_code=304, headers=headers)
    return Response(_picture(services, row), headers=headers, media_type="image/png")


def _picture(services: Services, row: CondensedSet) -> bytes:
    """PNG of as many classes and first ranks as a picture has room for."""
    info = parse_manifest(row.manifest).info
    room = max(1, LARGEST_SIDE // info.image_size)
    k = min(info.ipc, room)
    stored = services.objects.get_range(row.object_key, *rankmajor.subset_range(info, k))
    tiles = np.frombuffer(stored, np.uint8).reshape(info.tile_shape(k))
    return preview_png(tiles[:, :room], replace(info, classes=info.classes[:room]))
