"""Data sets: named ones, and uploads."""

from __future__ import annotations

import errno
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from mdc_core.config.presets import NAMED
from mdc_core.config.settings import DataFacts
from mdc_core.errors import DataError
from server.access.callers import Caller
from server.access.quotas import check_upload
from server.routes.deps import ServicesDep, links
from server.routes.paging import AfterQuery, LimitQuery, paged
from server.routes.security import JobsReader, JobsWriter
from server.schemas.base import SLUG, Page
from server.schemas.datasets import DatasetResponse
from server.services import Services
from server.store import datasets, holds
from server.store.holds import holding
from server.store.objects import ObjectStore
from server.store.tables import Dataset
from server.uploads.receive import Received, received_body
from server.web.problems import FieldError, Problem, invalid, not_found, responses

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

MEDIA_TYPES = (
    "application/zip",
    "application/x-zip-compressed",
    "application/x-npz",
    "application/octet-stream",
)
_LINKS = links(getDataset={"dataset_id": "id"})
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            media: {"schema": {"type": "string", "format": "binary"}}
            for media in ("application/zip", "application/x-npz")
        },
    }
}


@router.post(
    "",
    operation_id="uploadDataset",
    status_code=201,
    response_model=DatasetResponse,
    responses={
        200: {"model": DatasetResponse, "description": "You have uploaded these bytes before.", **_LINKS},
        201: _LINKS,
        **responses(401, 403, 413, 415, 422, 507),
    },
    openapi_extra=_BODY,
)
async def upload_dataset(
    request: Request,
    response: Response,
    caller: JobsWriter,
    services: ServicesDep,
    name: Annotated[str | None, Query(pattern=SLUG, description="Left out: made from the digest.")] = None,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
    content_length: Annotated[int | None, Header(include_in_schema=False, ge=0)] = None,
) -> DatasetResponse:
    """Upload a zip of `train/<class>/*` and `test/<class>/*` images, or an npz, as the raw body.

    Without a test split, a tenth of every class is held out. Uploading the same bytes again returns the same data set.
    """
    _check_request(services, name, content_type, content_length)
    limit = services.settings.upload_max_bytes
    try:
        async with received_body(request, services.settings.uploads_dir, limit) as received:
            services.metrics.uploaded.inc(received.size)
            row, is_new = await _kept(services, caller, name, received)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        detail = "the server has no room for these bytes, and has kept none of them: tell its operator"
        raise Problem(507, "no-room", detail) from error
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/datasets/{row.id}"
    return DatasetResponse.of(row)


def _check_request(services: Services, name: str | None, content_type: str, length: int | None) -> None:
    """What can be refused before the body is read."""
    if name in NAMED:
        message = f"{name!r} is the name of a named data set: choose another"
        raise invalid("invalid-request", [FieldError(field="query.name", message=message)])
    media = content_type.partition(";")[0].strip().lower()
    if media not in MEDIA_TYPES:
        raise Problem(
            415,
            "unsupported-media-type",
            f"Content-Type is {media!r}: send the file as the body itself, not as a form, as one of "
            f"{', '.join(MEDIA_TYPES)}",
            headers={"Accept": ", ".join(MEDIA_TYPES)},
        )
    limit = services.settings.upload_max_bytes
    if length is not None and length > limit:
        raise Problem(413, "body-too-large", f"the body has {length} bytes, at most {limit} are accepted")


async def _kept(
    services: Services, caller: Caller, name: str | None, received: Received
) -> tuple[Dataset, bool]:
    """Inspect the file, store its bytes, then its row; and whether it is new to the caller."""
    known = await run_in_threadpool(_same, services, caller, received)
    if known is not None:
        # The bytes again: whoever sends them may know that the object was lost or damaged.
        await services.store_threads.run(_store, services, received)
        return known, False
    chosen = name or f"upload-{received.sha256[:12]}"
    try:
        async with services.inspecting:
            kind, facts = await run_in_threadpool(services.inspections.run, received.path, chosen)
    except DataError as error:
        raise invalid("bad-dataset", [FieldError(field="body", message=str(error))]) from error
    return await services.store_threads.run(_add, services, caller, received, chosen, kind, facts)


def _same(services: Services, caller: Caller, received: Received) -> Dataset | None:
    with services.db.read() as session:
        return datasets.same(session, caller.key_id, received.sha256)


def _store(services: Services, received: Received) -> None:
    """Write the object unless it is there, whole and undamaged."""
    with holding(services.db, [_object_key(received)]):
        _write(services.objects, received)


def _write(objects: ObjectStore, received: Received) -> None:
    key = _object_key(received)
    if objects.head(key) != received.size or _digest(objects, key) != received.sha256:
        objects.put(key, received.path)


def _digest(objects: ObjectStore, key: str) -> str:
    digest = hashlib.sha256()
    for piece in objects.stream(key, 0, objects.head(key) or 0):
        digest.update(piece)
    return digest.hexdigest()


def _object_key(received: Received) -> str:
    return f"datasets/{received.sha256}"


def _add(
    services: Services, caller: Caller, received: Received, name: str, kind: str, facts: DataFacts
) -> tuple[Dataset, bool]:
    """Store the bytes, then the row."""
    most = services.settings.key_upload_bytes
    with services.db.begin() as session:  # before anything is stored
        check_upload(session, caller.key_id, received.size, most)
    key = _object_key(received)
    with holding(services.db, [key]) as hold:
        _write(services.objects, received)
        with services.db.begin() as session:
            check_upload(session, caller.key_id, received.size, most)
            hold.give_up(session)
            return datasets.add(
                session,
                owner_id=caller.key_id,
                name=name,
                kind=kind,
                sha256=received.sha256,
                size=received.size,
                object_key=key,
                facts=facts.model_dump(mode="json"),
            )


@router.get(
    "", operation_id="listDatasets", response_model=Page[DatasetResponse], responses=responses(401, 403, 422)
)
def list_datasets(
    caller: JobsReader, services: ServicesDep, after: AfterQuery, limit: LimitQuery = 20
) -> Page[DatasetResponse]:
    """The named data sets (on the first page), then your uploads, newest first."""
    with services.db.read() as session:
        found = datasets.page(session, owner_id=caller.sees, after=after, limit=limit + 1)
    page = paged(found, limit, DatasetResponse.of, lambda row: row.id)
    named = [DatasetResponse.named(facts) for facts in NAMED.values()] if after is None else []
    return page.model_copy(update={"data": [*named, *page.data]})


@router.get(
    "/{dataset_id}",
    operation_id="getDataset",
    response_model=DatasetResponse,
    responses=responses(401, 403, 404, 422),
)
def get_dataset(dataset_id: str, caller: JobsReader, services: ServicesDep) -> DatasetResponse:
    """A data set by its name or id."""
    if dataset_id in NAMED:
        return DatasetResponse.named(NAMED[dataset_id])
    with services.db.read() as session:
        row = datasets.get(session, dataset_id, owner_id=caller.sees)
    if row is None:
        raise not_found(f"data set {dataset_id!r}")
    return DatasetResponse.of(row)


@router.delete(
    "/{dataset_id}",
    operation_id="deleteDataset",
    status_code=204,
    response_class=Response,
    responses=responses(401, 403, 404, 409, 422),
)
def delete_dataset(dataset_id: str, caller: JobsWriter, services: ServicesDep) -> Response:
    """Delete an upload and its bytes for good; sets that were made of it stay. 409 while a job needs it."""
    with services.db.begin() as session:
        row = datasets.get(session, dataset_id, owner_id=caller.sees)
        if row is None:
            raise not_found(f"upload {dataset_id!r}")
        if datasets.is_needed(session, dataset_id):
            raise Problem(
                409, "dataset-in-use", f"a job that has not ended is made of {dataset_id}: cancel it, or wait"
            )
        holds.lock(session, row.object_key, shared=False)
        if datasets.delete(session, row) and not holds.is_held(session, row.object_key):
            services.objects.delete(row.object_key)
    return Response(status_code=204)
