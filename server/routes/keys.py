"""API keys: make, list, revoke."""

from __future__ import annotations

from fastapi import APIRouter, Response

from server.access.tokens import create_key
from server.routes.deps import ServicesDep, links
from server.routes.paging import AfterQuery, LimitQuery, paged
from server.routes.security import Admin, KeyBeforeBody
from server.schemas.base import Page
from server.schemas.keys import KeyRequest, KeyResponse, NewKeyResponse
from server.store import keys
from server.web.problems import Problem, not_found, responses

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=KeyBeforeBody)


@router.post(
    "",
    operation_id="createKey",
    status_code=201,
    response_model=NewKeyResponse,
    responses={201: links(revokeKey={"key_id": "id"}), **responses(401, 403, 413, 422)},
)
def create(body: KeyRequest, response: Response, caller: Admin, services: ServicesDep) -> NewKeyResponse:
    """Create a key. Only this response shows it."""
    with services.db.begin() as session:
        row, token = create_key(
            session,
            services.secret_key,
            name=body.name,
            scopes=sorted(set(body.scopes)),
            expires_at=body.expires_at,
        )
    response.headers["Cache-Control"] = "no-store"
    return NewKeyResponse(**KeyResponse.of(row).model_dump(), key=token)


@router.get("", operation_id="listKeys", response_model=Page[KeyResponse], responses=responses(401, 403, 422))
def list_keys(
    caller: Admin, services: ServicesDep, after: AfterQuery, limit: LimitQuery = 20
) -> Page[KeyResponse]:
    """All keys, without their secrets."""
    with services.db.read() as session:
        found = keys.page(session, after=after, limit=limit + 1)
    return paged(found, limit, KeyResponse.of, lambda key: key.id)


@router.delete(
    "/{key_id}",
    operation_id="revokeKey",
    status_code=204,
    response_class=Response,
    responses=responses(401, 403, 404, 409, 422),
)
def revoke(key_id: str, caller: Admin, services: ServicesDep) -> Response:
    """Make a key useless; reading subsets with it ends within seconds. The last admin key that works stays."""
    with services.db.begin() as session:
        key = keys.get(session, key_id)
        if key is None:
            raise not_found(f"key {key_id!r}")
        if [admin.id for admin in keys.admins(session, lock=True)] == [key_id]:
            raise Problem(409, "last-admin-key", f"{key_id} is the last admin key: make another one first")
        keys.revoke(session, key_id)
    services.authenticator.known_keys.forget(key_id)
    return Response(status_code=204)
