"""What FastAPI hands to the routes, and links for its OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Request

from server.services import Services


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


async def _in_turn(services: ServicesDep) -> AsyncIterator[None]:
    async with services.at_work:
        yield


InTurn = Depends(_in_turn, scope="function")
"""For routes whose work is the database's: a request waits for those that came before it, once.

Otherwise all that have come are begun, wait for each other at every step, and the last of many waits twice as long.
Neither bodies that arrive slowly nor streams hold up others: a body is read before, a response is sent after it.
"""


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
