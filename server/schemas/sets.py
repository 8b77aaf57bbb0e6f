"""Published sets and plans as responses."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field, WithJsonSchema

from mdc_core.delivery.budget import Plan, plan_descriptions
from mdc_core.delivery.verdict import Verdict, advice, judged
from mdc_core.names import visible
from server.delivery.catalog import Version
from server.schemas.base import ResponseBody
from server.store.tables import CondensedSet


class SetResponse(ResponseBody):
    """A published version of a condensed set."""

    name: str
    version: int
    job: str
    ipc: int
    """N: the set has subsets 1..N."""
    factor: int
    classes: list[str]
    image_size: int
    channels: int
    bytes: int
    """Size of subset N."""
    accuracy: list[dict[str, Any]]
    """Measured test accuracy per k, and the verdict on it, as in the manifest."""
    advice: str | None
    """Which k are not worth their bytes and what to do about it, in words; null: all are."""
    created_at: datetime
    links: dict[str, str]

    @classmethod
    def of(cls, row: CondensedSet) -> Self:
        """The version as callers see it; the manifest must be loaded."""
        here = f"/v1/sets/{row.name}@{row.version}"
        shape = {key: row.manifest[key] for key in ("ipc", "factor", "classes", "image_size", "channels")}
        shape["classes"] = [visible(name) for name in shape["classes"]]
        accuracy = judged(row.manifest["accuracy"], row.manifest["ipc"])
        return cls(
            name=row.name,
            version=row.version,
            job=row.job_id,
            bytes=row.object_bytes,
            accuracy=accuracy,
            advice=advice(accuracy),
            created_at=row.created_at,
            links={
                "self": here,
                "manifest": f"{here}/manifest",
                "preview": f"{here}/preview.png",
                "subset": f"{here}/subsets/{{k}}",
                "rank": f"{here}/ranks/{{r}}",
                "plans": f"{here}/plans",
            },
            **shape,
        )


_TWO = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
"""Alike: what generates clients and tests from the description knows this better than one schema for each."""


def _planned(name: str) -> Any:
    return Field(description=plan_descriptions()[name])


class PlanResponse(ResponseBody):
    """The subset for a budget, and its expected cost. Null: the budget and the manifest do not determine it."""

    name: str
    version: int
    """The version that the plan is about: fetch this one."""
    url: str
    """Where subset k is."""
    sha256: str
    """Digest of its file."""
    k: int = _planned("k")
    have_k: int = _planned("have_k")
    delta_bytes: int = _planned("delta_bytes")
    byte_range: Annotated[tuple[int, int], WithJsonSchema(_TWO)] = _planned("byte_range")
    total_bytes: int = _planned("total_bytes")
    seconds: float | None = _planned("seconds")
    joules: float | None = _planned("joules")
    memory_bytes: int | None = _planned("memory_bytes")
    accuracy: float | None = _planned("accuracy")
    limited_by: str | None = _planned("limited_by")
    epochs: int = _planned("epochs")
    verdict: Verdict | None = _planned("verdict")
    reason: str | None = _planned("reason")

    @classmethod
    def of(cls, plan: Plan, version: Version) -> Self:
        """A plan about a version."""
        return cls(
            name=version.row.name,
            version=version.row.version,
            url=f"{version.path}/subsets/{plan.k}",
            sha256=version.manifest.digests.subsets[plan.k - 1],
            **asdict(plan),
        )
