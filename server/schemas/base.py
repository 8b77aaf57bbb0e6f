"""What all bodies of requests and responses have in common."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

SLUG = r"^[a-z0-9][a-z0-9-]{0,62}$"
Slug = Annotated[str, Field(pattern=SLUG)]

T = TypeVar("T")


class RequestBody(BaseModel):
    """A request's body: an unknown field is an error that names it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ResponseBody(BaseModel):
    """A response's body."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Page(ResponseBody, Generic[T]):
    """Part of a list."""

    data: list[T]
    has_more: bool
    next_cursor: str | None
    """Send it as `after` for the following page."""
