"""What has happened to a job, as a list and as a stream."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from starlette.concurrency import run_in_threadpool

from server.access.callers import Caller
from server.routes.deps import InTurn, ServicesDep
from server.routes.paging import AfterQuery, LimitQuery, paged
from server.routes.security import JobsReader
from server.schemas.base import Page
from server.schemas.jobs import JobEventResponse
from server.services import Services
from server.store import events, jobs
from server.store.states import ENDED
from server.web.problems import FieldError, invalid, not_found, responses

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["jobs"], dependencies=[InTurn])

_MESSAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "event": {"enum": ["state", "progress"]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer", "minimum": 0},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `state` with an id, whose data is a JobEventResponse, and `progress` "
        "without one, whose data is a Progress. The stream ends after the job's last event.",
        "content": {"text/event-stream": {"itemSchema": _MESSAGE}},
    },
    204: {"description": "The job has ended, and `Last-Event-ID` is its last event: do not come back."},
    **responses(401, 403, 404, 422),
}


@router.get(
    "",
    operation_id="listJobEvents",
    response_model=Page[JobEventResponse],
    responses=responses(401, 403, 404, 422),
)
def list_events(
    job_id: str, caller: JobsReader, services: ServicesDep, after: AfterQuery, limit: LimitQuery = 20
) -> Page[JobEventResponse]:
    """The changes of a job's state, oldest first."""
    if after is not None and not _is_number(after):
        raise invalid("invalid-request", [FieldError(field="query.after", message="is no cursor of events")])
    with services.db.read() as session:
        if jobs.get(session, job_id, owner_id=caller.sees) is None:
            raise not_found(f"job {job_id!r}")
        found = events.page(session, job_id, after=int(after or 0), limit=limit + 1)
    return paged(found, limit, JobEventResponse.of, lambda event: str(event.id))


@router.get("/stream", operation_id="streamJobEvents", response_class=Response, responses=_STREAM)
async def stream_events(
    job_id: str,
    caller: JobsReader,
    services: ServicesDep,
    last_event_id: Annotated[
        str | None, Header(pattern=r"^[0-9]{1,18}$", description="Go on after this event.")
    ] = None,
) -> Response:
    """The same as they happen, and the job's progress in between, as server-sent events.

    A client that comes back with the id of the last event that it has seen misses none and gets none twice. The key is
    checked when the stream begins; after an hour the stream ends, to be taken up again.
    """
    after = int(last_event_id or 0)
    if await run_in_threadpool(_is_over, services, caller, job_id, after):
        return Response(status_code=204)
    return services.watchers.stream(job_id, caller.key_id, after)


def _is_over(services: Services, caller: Caller, job_id: str, after: int) -> bool:
    """Whether the caller has seen all that will ever happen. `Problem` 404."""
    with services.db.read() as session:
        job = jobs.get(session, job_id, owner_id=caller.sees)
        if job is None:
            raise not_found(f"job {job_id!r}")
        return after > 0 and job.state in ENDED and not events.page(session, job_id, after=after, limit=1)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
