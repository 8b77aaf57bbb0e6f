"""Lists in pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Query

from server.schemas.base import Page
from server.store.ids import from_cursor, to_cursor
from server.web.problems import FieldError, invalid

R = TypeVar("R")
T = TypeVar("T")

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


def paged(rows: Sequence[R], limit: int, shown: Callable[[R], T], position: Callable[[R], str]) -> Page[T]:
    """The first `limit` of `rows`, which hold one more if there is a next page.

    Args:
        shown: makes an entry of a row.
        position: what the cursor stores of the last row.
    """
    has_more = len(rows) > limit
    cursor = to_cursor(position(rows[limit - 1])) if has_more else None
    return Page(data=[shown(row) for row in rows[:limit]], has_more=has_more, next_cursor=cursor)
