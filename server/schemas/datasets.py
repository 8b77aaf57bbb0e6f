"""Data sets as responses."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from mdc_core.config.settings import DataFacts
from server.schemas.base import ResponseBody
from server.store.tables import Dataset


class DatasetResponse(ResponseBody):
    """A data set that jobs can name."""

    id: str
    """What a job's `dataset` says: the name of a named set, or the id of an upload."""
    name: str
    kind: Literal["named", "zip", "npz"]
    facts: DataFacts
    sha256: str | None
    """Digest of the uploaded file."""
    bytes: int | None
    """Size of the uploaded file."""
    created_at: datetime | None

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """An upload."""
        return cls.model_validate(
            {
                "id": dataset.id,
                "name": dataset.name,
                "kind": dataset.kind,
                "facts": dataset.facts,
                "sha256": dataset.sha256,
                "bytes": dataset.bytes,
                "created_at": dataset.created_at,
            }
        )

    @classmethod
    def named(cls, facts: DataFacts) -> Self:
        """A named set."""
        return cls(
            id=facts.name,
            name=facts.name,
            kind="named",
            facts=facts,
            sha256=None,
            bytes=None,
            created_at=None,
        )
