"""For probes: open, and not part of the documented API."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from server.routes.deps import ServicesDep
from server.store.db import Database
from server.store.migrate import current, head
from server.web.problems import Problem

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers. It uses no store and never waits."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: ServicesDep) -> dict[str, str]:
    """Database and object store answer. The broker is not checked, because submissions work without it."""
    try:
        revision = await run_in_threadpool(_revision, services.db)
    except Exception as error:
        raise _unready("database", error) from error
    if revision != head():
        raise Problem(
            503,
            "not-ready",
            f"the database is at revision {revision}, this release needs {head()}: run the migrations",
        )
    try:
        await services.store_threads.run(services.objects.head, "readyz")
    except Exception as error:
        raise _unready("object store", error) from error
    return {"status": "ready"}


def _revision(db: Database) -> str | None:
    db.check_file()
    with db.read() as session:
        return current(session.connection())


@router.get("/metrics")
def metrics(services: ServicesDep) -> Response:
    """The numbers that Prometheus collects."""
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _unready(what: str, error: Exception) -> Problem:
    """The response names what fails; the log says why."""
    structlog.get_logger().warning("not ready", part=what, error=repr(error))
    return Problem(503, "not-ready", f"the {what} does not answer: see the server's log")
