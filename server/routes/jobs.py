"""Jobs: submit, watch, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from server.jobs.submit import plan, submit
from server.routes.deps import InTurn, ServicesDep, links
from server.routes.paging import AfterQuery, LimitQuery, paged
from server.routes.security import JobsReader, JobsWriter, KeyBeforeBody
from server.schemas.base import Page
from server.schemas.jobs import JobPlan, JobRequest, JobResponse
from server.store import jobs
from server.store.states import JobState
from server.web.problems import Problem, not_found, responses

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[InTurn], route_class=KeyBeforeBody)

POLL_JOB_SECONDS = 2
"""`Retry-After` of a new job."""


@router.post(
    "",
    operation_id="submitJob",
    status_code=202,
    response_model=JobResponse,
    responses={
        200: {"model": JobPlan, "description": "`dry_run`: what the job would be and take."},
        202: links(
            getJob={"job_id": "id"},
            cancelJob={"job_id": "id"},
            listJobEvents={"job_id": "id"},
            streamJobEvents={"job_id": "id"},
            getDataset={"dataset_id": "dataset"},
        ),
        **responses(401, 403, 409, 413, 422),
    },
)
def submit_job(
    body: JobRequest,
    response: Response,
    caller: JobsWriter,
    services: ServicesDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> JobResponse | Response:
    """Queue a condensation, or estimate it (`dry_run`).

    A repetition with the same Idempotency-Key returns the first job.
    """
    if body.dry_run:
        return JSONResponse(plan(services.db, caller, body, services.settings).model_dump(mode="json"))
    job = submit(services.db, caller, body, idempotency_key, services.settings)
    services.wakeup.send(job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    response.headers["Retry-After"] = str(POLL_JOB_SECONDS)
    return JobResponse.of(job)


@router.get("", operation_id="listJobs", response_model=Page[JobResponse], responses=responses(401, 403, 422))
def list_jobs(
    caller: JobsReader,
    services: ServicesDep,
    after: AfterQuery,
    limit: LimitQuery = 20,
    state: JobState | None = None,
    owner: Annotated[str | None, Query(max_length=32, description="Key id; admins only.")] = None,
) -> Page[JobResponse]:
    """Your jobs, newest first; with the scope admin those of all keys, or of `owner`."""
    if owner is not None and not caller.is_admin and owner != caller.key_id:
        raise Problem(403, "scope-missing", "only a key with the scope admin may list the jobs of another")
    with services.db.read() as session:
        found = jobs.page(session, owner_id=owner or caller.sees, state=state, after=after, limit=limit + 1)
    return paged(found, limit, JobResponse.of, lambda job: job.id)


@router.get(
    "/{job_id}", operation_id="getJob", response_model=JobResponse, responses=responses(401, 403, 404, 422)
)
def get_job(job_id: str, caller: JobsReader, services: ServicesDep) -> JobResponse:
    """A job with its progress. The response for a failed job is 200, with an `error`."""
    with services.db.read() as session:
        job = jobs.get(session, job_id, owner_id=caller.sees)
    if job is None:
        raise not_found(f"job {job_id!r}")
    return JobResponse.of(job)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancelJob",
    status_code=202,
    response_model=JobResponse,
    responses=responses(401, 403, 404, 409, 422),
)
def cancel_job(job_id: str, caller: JobsWriter, services: ServicesDep) -> JobResponse:
    """Stop a job: at once when it is queued, else as soon as its worker has stopped it."""
    with services.db.begin() as session:
        job = jobs.get(session, job_id, owner_id=caller.sees)
        if job is None:
            raise not_found(f"job {job_id!r}")
        job = jobs.cancel(session, job_id) or job
        if job.state in (JobState.SUCCEEDED, JobState.FAILED):
            raise Problem(
                409, "job-ended", f"job {job_id} has {job.state.value}: it cannot be canceled any more"
            )
    return JobResponse.of(job)
