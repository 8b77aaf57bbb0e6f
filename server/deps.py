"""What the routes work with: made once per application, handed to them by FastAPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from mdc_core.signing import PrivateKey
from server.callers import KnownKeys
from server.catalog import Catalog
from server.manifests import Manifests
from server.metrics import Metrics
from server.problems import FieldError, invalid
from server.ranks import Ranks
from server.ratelimit import RateLimits
from server.settings import Settings
from server.store.db import Database
from server.store.ids import from_cursor
from server.store.objects import ObjectStore
from server.wakeup import Wakeup
from server.watch import Watchers


@dataclass(frozen=True)
class Services:
    """The effects behind the API."""

    settings: Settings
    db: Database
    objects: ObjectStore
    wakeup: Wakeup
    secret_key: bytes
    manifest_keys: tuple[PrivateKey, ...]
    """The first signs, all are published."""
    known_keys: KnownKeys
    catalog: Catalog
    manifests: Manifests
    ranks: Ranks
    watchers: Watchers
    rates: RateLimits
    metrics: Metrics


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


def links(**parameters: dict[str, str]) -> dict[str, Any]:
    """OpenAPI links from a response: operation id to its parameters, each a field of the response's body."""
    return {
        "links": {
            operation: {
                "operationId": operation,
                "parameters": {name: f"$response.body#/{field}" for name, field in fields.items()},
            }
            for operation, fields in parameters.items()
        }
    }


LimitQuery = Annotated[int, Query(ge=1, le=100, description="Entries per page.")]


async def _after(
    after: Annotated[
        str | None, Query(max_length=300, description="`next_cursor` of the page before.")
    ] = None,
) -> str | None:
    """The position in the cursor."""
    if after is None:
        return None
    try:
        return from_cursor(after)
    except ValueError as error:
        raise invalid("invalid-request", [FieldError(field="query.after", message=str(error))]) from error


AfterQuery = Annotated[str | None, Depends(_after)]
"""Where a list goes on; None: at its beginning."""
