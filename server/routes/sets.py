"""Condensed sets: list, describe, look at, withdraw."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from starlette.concurrency import run_in_threadpool

from mdc_core.delivery import rankmajor
from server.delivery.answers import unreadable
from server.delivery.catalog import Version, split_reference
from server.delivery.manifests import JOSE, JSON
from server.routes.deps import ServicesDep, links
from server.routes.paging import AfterQuery, LimitQuery, paged
from server.routes.security import JobsWriter, SubsetsReader
from server.schemas.base import Page
from server.schemas.sets import SetResponse
from server.services import Services
from server.store import sets
from server.store.tables import utcnow
from server.web.conditional import LONGEST, matches, prefers
from server.web.problems import FieldError, Problem, invalid, not_found, responses

router = APIRouter(prefix="/v1/sets", tags=["sets"])

SetReference = Annotated[
    str, Path(max_length=80, description="`name` for the latest version, or `name@version`.")
]
IfNoneMatch = Annotated[str | None, Header(max_length=LONGEST)]


@router.get("", operation_id="listSets", response_model=Page[SetResponse], responses=responses(401, 403, 422))
def list_sets(
    caller: SubsetsReader, services: ServicesDep, after: AfterQuery, limit: LimitQuery = 20
) -> Page[SetResponse]:
    """The latest version of every set, by name."""
    with services.db.read() as session:
        found = sets.page(session, after=after, limit=limit + 1)
    return paged(found, limit, SetResponse.of, lambda row: row.name)


@router.get(
    "/{name}",
    operation_id="getSet",
    response_model=SetResponse,
    responses={
        200: links(getManifest={"name": "name"}, getPreview={"name": "name"}, makePlan={"name": "name"}),
        **responses(401, 403, 404, 422),
    },
)
async def get_set(name: SetReference, caller: SubsetsReader, services: ServicesDep) -> SetResponse:
    """A version of a set."""
    version, _ = await services.catalog.look_up(name)
    return SetResponse.of(version.row)


@router.delete(
    "/{name}",
    operation_id="withdrawSet",
    status_code=204,
    response_class=Response,
    responses=responses(401, 403, 404, 422),
)
def withdraw_set(name: SetReference, caller: JobsWriter, services: ServicesDep) -> Response:
    """Withdraw the version `name@version`: it is delivered no more, and its number is not used again.

    It is for its owner and for admins. A second time changes nothing. The objects stay in the store.
    """
    set_name, number = split_reference(name)
    if number is None:
        reason = f"{name!r} names no version: write {name}@1, as every version is withdrawn by itself"
        raise invalid("invalid-request", [FieldError(field="path.name", message=reason)])
    with services.db.begin() as session:
        row = sets.get(session, set_name, number)
        if row is None:
            raise not_found(f"condensed set {name!r}")
        if not caller.is_admin and row.owner_id != caller.key_id:
            raise Problem(
                403, "not-owner", f"{name} belongs to key {row.owner_id}: only it or an admin withdraws it"
            )
        sets.withdraw(session, set_name, number)
    services.catalog.forget(set_name, number)
    return Response(status_code=204)


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
async def get_manifest(
    name: SetReference,
    caller: SubsetsReader,
    services: ServicesDep,
    accept: Annotated[str | None, Header(max_length=LONGEST)] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """What a device must know before it fetches: shape, digests, accuracy per k, cost of training.

    Its signature is checked with the keys of `/v1/keyset`; it must not be used after its `expires`.
    """
    version, pinned = await services.catalog.look_up(name)
    now = utcnow()
    manifest = services.manifests.warm(version.row, now)
    if manifest is None:
        manifest = await run_in_threadpool(services.manifests.write, version.row, now)
    written = manifest.jose if prefers(accept, JOSE, JSON) else manifest.json
    headers = {
        "ETag": written.etag,
        "Vary": "Accept",
        "Cache-Control": "private, max-age=300" if pinned else "private, max-age=60",
        "Content-Location": f"{version.path}/manifest",
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
async def get_preview(
    name: SetReference,
    caller: SubsetsReader,
    services: ServicesDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The set as a picture: a row per class, a column per rank, as many as 2400 pixels each way hold."""
    version, pinned = await services.catalog.look_up(name)
    etag = f'"preview-{version.manifest.digests.object}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, immutable, max-age=31536000" if pinned else "private, max-age=60",
        "Content-Location": f"{version.path}/preview.png",
    }
    if if_none_match is not None and matches(if_none_match, etag, weak=True):
        return Response(status_code=304, headers=headers)
    picture = services.pictures.get(etag)
    if picture is None:
        async with services.drawing:  # each takes a core and some memory
            picture = services.pictures.get(etag)
            if picture is None:
                try:
                    picture = await services.store_threads.run(_picture, services, version)
                except FileNotFoundError as error:
                    raise unreadable(version, error) from error
                services.pictures.put(etag, picture)
    return Response(picture, headers=headers, media_type="image/png")


def _picture(services: Services, version: Version) -> bytes:
    """PNG of as many classes and first ranks as a picture has room for."""
    # Imported here: an API that is never asked for a picture does without 16 MB.
    import numpy as np

    from mdc_core.delivery.preview import LARGEST_SIDE, preview_png

    info = version.manifest.info
    room = max(1, LARGEST_SIDE // info.image_size)
    k = min(info.ipc, room)
    stored = services.objects.get_range(version.object_key, *rankmajor.subset_range(info, k))
    tiles = np.frombuffer(stored, np.uint8).reshape(info.tile_shape(k))
    return preview_png(tiles[:, :room], replace(info, classes=info.classes[:room]))
