"""Subsets: the bytes that devices fetch."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from server.auth import SubsetsReader
from server.delivery import MEDIA_TYPE, Conditions, deliver
from server.deps import ServicesDep
from server.problems import responses
from server.routes.sets import SetReference, find_set

router = APIRouter(tags=["subsets"])

Size = Annotated[str, Path(max_length=40, description="k: a whole number 1..N, or `auto`.")]
SetQuery = Annotated[
    str, Query(alias="set", max_length=80, description="`name` for the latest version, or `name@version`.")
]

_BYTES: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", **_BYTES},
    206: {"description": "The range asked for.", **_BYTES},
    304: {"description": "Not Modified"},
    **responses(401, 403, 404, 412, 416, 422),
}
_BUDGET_FIELDS: dict[str, dict[str, Any]] = {
    "memory_bytes": {"type": "integer", "minimum": 0},
    "storage_bytes": {"type": "integer", "minimum": 0},
    "transfer_bytes": {"type": "integer", "minimum": 0},
    "bandwidth_bps": {"type": "number", "exclusiveMinimum": 0},
    "metered": {"type": "boolean"},
    "seconds": {"type": "number", "minimum": 0},
    "flops": {"type": "number", "exclusiveMinimum": 0},
    "joules": {"type": "number", "minimum": 0},
    "watts": {"type": "number", "exclusiveMinimum": 0},
    "min_accuracy": {"type": "number", "minimum": 0, "maximum": 1},
    "have_k": {"type": "integer", "minimum": 0},
    "network": {"type": "string"},
    "epochs": {"type": "integer", "minimum": 1},
    "batch_size": {"type": "integer", "minimum": 1},
}
_OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": "Part of the budget.",
        }
        for name, schema in _BUDGET_FIELDS.items()
    ]
}


def _conditions(
    range_: Annotated[str | None, Header(alias="Range", max_length=4096)] = None,
    if_range: Annotated[str | None, Header(max_length=4096)] = None,
    if_match: Annotated[str | None, Header(max_length=4096)] = None,
    if_none_match: Annotated[str | None, Header(max_length=4096)] = None,
) -> Conditions:
    return Conditions(range_, if_range, if_match, if_none_match)


ConditionsDep = Annotated[Conditions, Depends(_conditions)]


@router.head("/subsets/{k}", operation_id="headSubset", responses=_RESPONSES, openapi_extra=_OPENAPI)
@router.get("/subsets/{k}", operation_id="getSubset", responses=_RESPONSES, openapi_extra=_OPENAPI)
def get_subset(
    k: Size,
    set_name: SetQuery,
    request: Request,
    caller: SubsetsReader,
    services: ServicesDep,
    conditions: ConditionsDep,
) -> Response:
    """Subset k of a set as one safetensors file; with a budget the best subset up to k that it affords."""
    return _answer(set_name, k, request, services, conditions)


@router.head(
    "/v1/sets/{name}/subsets/{k}", operation_id="headSetSubset", responses=_RESPONSES, openapi_extra=_OPENAPI
)
@router.get(
    "/v1/sets/{name}/subsets/{k}", operation_id="getSetSubset", responses=_RESPONSES, openapi_extra=_OPENAPI
)
def get_set_subset(
    name: SetReference,
    k: Size,
    request: Request,
    caller: SubsetsReader,
    services: ServicesDep,
    conditions: ConditionsDep,
) -> Response:
    """The same as `/subsets/{k}?set=name`."""
    return _answer(name, k, request, services, conditions)


def _answer(
    reference: str, wanted: str, request: Request, services: ServicesDep, conditions: Conditions
) -> Response:
    row, pinned = find_set(services, reference)
    fields = {name: value for name, value in request.query_params.items() if name != "set"}
    answer = deliver(
        row,
        wanted,
        fields,
        conditions,
        services.objects,
        pinned=pinned,
        head=request.method == "HEAD",
    )
    if answer.status == 304:
        return Response(status_code=304, headers=answer.headers)
    return StreamingResponse(answer.body, answer.status, answer.headers)
