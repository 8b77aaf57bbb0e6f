"""Subsets, ranks and plans, for devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from mdc_core.delivery.budget import budget_schema
from server.delivery.answers import (
    EPOCHS,
    MEDIA_TYPE,
    VERDICT,
    Answer,
    answer_rank,
    answer_subset,
    choose_size,
    make_plan,
    named_rank,
    named_size,
    send,
)
from server.delivery.catalog import Version
from server.routes.deps import ServicesDep, links
from server.routes.security import KeyBeforeBody, SubsetsReader
from server.routes.sets import SetReference
from server.schemas.sets import PlanResponse
from server.services import Services
from server.web.conditional import LONGEST, Conditions
from server.web.problems import responses

router = APIRouter(tags=["subsets"], route_class=KeyBeforeBody)

Size = Annotated[str, Path(max_length=40, description="k: a whole number 1..N, or `auto`.")]
SetQuery = Annotated[
    str, Query(alias="set", max_length=80, description="`name` for the latest version, or `name@version`.")
]

_BYTES: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", **_BYTES},
    206: {"description": "The range asked for.", **_BYTES},
    302: {"description": "The same bytes at the object store, for `MDC_DOWNLOADS=redirect`."},
    304: {"description": "Not Modified"},
    **responses(401, 403, 404, 412, 416, 422),
}
_RANK_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes of the rank.", **_BYTES},
    304: {"description": "Not Modified"},
    **responses(401, 403, 404, 412, 422),
}
_OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {key: value for key, value in schema.items() if key != "description"},
            "description": schema["description"],
        }
        for name, schema in budget_schema().items()
    ]
}
_BUDGET_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "title": "Budget",
                    "type": "object",
                    "properties": budget_schema(),
                    "additionalProperties": False,
                }
            }
        },
    }
}


async def _conditions(
    range_: Annotated[str | None, Header(alias="Range", max_length=LONGEST)] = None,
    if_range: Annotated[str | None, Header(max_length=LONGEST)] = None,
    if_match: Annotated[str | None, Header(max_length=LONGEST)] = None,
    if_none_match: Annotated[str | None, Header(max_length=LONGEST)] = None,
) -> Conditions:
    return Conditions(range_, if_range, if_match, if_none_match)


async def _tags(
    if_match: Annotated[str | None, Header(max_length=LONGEST)] = None,
    if_none_match: Annotated[str | None, Header(max_length=LONGEST)] = None,
) -> Conditions:
    return Conditions(if_match=if_match, if_none_match=if_none_match)


ConditionsDep = Annotated[Conditions, Depends(_conditions)]
TagsDep = Annotated[Conditions, Depends(_tags)]


@router.head("/subsets/{k}", operation_id="headSubset", responses=_RESPONSES, openapi_extra=_OPENAPI)
@router.get("/subsets/{k}", operation_id="getSubset", responses=_RESPONSES, openapi_extra=_OPENAPI)
async def get_subset(
    k: Size,
    set_name: SetQuery,
    request: Request,
    caller: SubsetsReader,
    services: ServicesDep,
    conditions: ConditionsDep,
) -> Response:
    """Subset k of a set as one safetensors file; with a budget, the best subset up to k that fits it."""
    return await _answer(set_name, k, request, services, conditions)


@router.head(
    "/v1/sets/{name}/subsets/{k}", operation_id="headSetSubset", responses=_RESPONSES, openapi_extra=_OPENAPI
)
@router.get(
    "/v1/sets/{name}/subsets/{k}", operation_id="getSetSubset", responses=_RESPONSES, openapi_extra=_OPENAPI
)
async def get_set_subset(
    name: SetReference,
    k: Size,
    request: Request,
    caller: SubsetsReader,
    services: ServicesDep,
    conditions: ConditionsDep,
) -> Response:
    """The same as `/subsets/{k}?set=name`."""
    return await _answer(name, k, request, services, conditions)


async def _answer(
    reference: str, wanted: str, request: Request, services: Services, conditions: Conditions
) -> Response:
    version, pinned = await services.catalog.look_up(reference)
    fields = {name: value for name, value in request.query_params.items() if name != "set"}
    about: dict[str, str] = {}
    if wanted == "auto" or fields:  # a plan compares all sizes
        async with services.planning:
            chosen = await run_in_threadpool(choose_size, version.manifest, wanted, fields)
        k, about[EPOCHS] = chosen.k, str(chosen.epochs)
        if chosen.verdict is not None:
            about[VERDICT] = chosen.verdict
    else:
        k = named_size(version.manifest, wanted)
    head = request.method == "HEAD"
    answer = answer_subset(version, k, conditions, pinned=pinned, head=head)
    return await _sent(services, version, replace(answer, headers={**answer.headers, **about}))


async def _sent(services: Services, version: Version, answer: Answer) -> Response:
    return await send(
        version,
        answer,
        ranks=services.ranks,
        objects=services.objects,
        threads=services.store_threads,
        redirects=services.settings.downloads == "redirect",
    )


@router.head("/v1/sets/{name}/ranks/{r}", operation_id="headRank", responses=_RANK_RESPONSES)
@router.get("/v1/sets/{name}/ranks/{r}", operation_id="getRank", responses=_RANK_RESPONSES)
async def get_rank(
    name: SetReference,
    r: Annotated[str, Path(max_length=40, description="A whole number 1..N.")],
    request: Request,
    caller: SubsetsReader,
    services: ServicesDep,
    tags: TagsDep,
) -> Response:
    """Rank r alone, without a header: what subset r adds to subset r - 1."""
    version, pinned = await services.catalog.look_up(name)
    number = named_rank(version.manifest, r)
    head = request.method == "HEAD"
    return await _sent(services, version, answer_rank(version, number, tags, pinned=pinned, head=head))


@router.post(
    "/v1/sets/{name}/plans",
    operation_id="makePlan",
    response_model=PlanResponse,
    responses={
        200: links(getSetSubset={"name": "name", "k": "k"}),
        **responses(401, 403, 404, 413, 422),
    },
    openapi_extra=_BUDGET_BODY,
)
async def make_a_plan(
    name: SetReference,
    budget: Annotated[dict[str, Any], Body()],
    response: Response,
    caller: SubsetsReader,
    services: ServicesDep,
) -> PlanResponse:
    """The largest good subset that fits a budget, its cost, and why not a larger one. The budget is not stored."""
    version, _ = await services.catalog.look_up(name)
    async with services.planning:
        made = await run_in_threadpool(make_plan, version.manifest, budget, "budget")
    response.headers["Cache-Control"] = "no-store"
    return PlanResponse.of(made, version)
