"""Bodies of requests and responses. The configurations are `mdc_core.config.settings`'s own."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema

from mdc_core.config.defaults import MAX_MINUTES
from mdc_core.config.settings import (
    MAX_SIDE,
    MIN_SIDE,
    CondenseConfig,
    DataFacts,
    EvaluateConfig,
    NetworkConfig,
)
from mdc_core.config.shorten import Shorter
from mdc_core.delivery.budget import Plan, plan_descriptions
from mdc_core.delivery.verdict import Verdict, advice, judged
from mdc_core.errors import ConfigError
from mdc_core.names import visible
from server.access.callers import SCOPES, Scope
from server.delivery.catalog import Version
from server.store.states import JobState
from server.store.tables import ApiKey, CondensedSet, Dataset, Job, JobEvent, utcnow

SLUG = r"^[a-z0-9][a-z0-9-]{0,62}$"
Slug = Annotated[str, Field(pattern=SLUG)]

LONGEST_KEY = timedelta(days=36_500)
"""How far away the end of a key may be, if it has one."""

T = TypeVar("T")
C = TypeVar("C", CondenseConfig, EvaluateConfig)


class Body(BaseModel):
    """A request's body: an unknown field is an error that names it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Shown(BaseModel):
    """A response's body."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Page(Shown, Generic[T]):
    """Part of a list."""

    data: list[T]
    has_more: bool
    next_cursor: str | None
    """Send it as `after` for the following page."""


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity, but Python reads 1e999 as one, and no database would store it."""
    for name, value in values.items():
        if isinstance(value, dict):
            _finite(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: give a finite number")
    return values


Overrides = Annotated[dict[str, Any], AfterValidator(_finite)]


class JobRequest(Body):
    """A condensation to run."""

    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,63}$")]
    """Name of a named data set, or id of an uploaded one."""
    image_size: Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)] | None = None
    """Side that the images of a zip get; left out: the median of theirs, at most 64, or what `preset` is made for."""
    minutes: Annotated[float, Field(gt=0, le=MAX_MINUTES)] | None = None
    """Time that the job should take on the largest worker, which decides its schedule; left out: 10 for uploads,
    unless a schedule or a published preset is given, else the schedule is the preset's."""
    name: Slug | None = None
    """Name of the set to publish; left out: `<dataset>-ipc<N>`."""
    preset: Annotated[str, Field(max_length=63)] | None = None
    """Settings to start from; left out: those nearest to the data set."""
    condense: Overrides = Field(default_factory=dict)
    """What differs from the preset's condensation; `method` may be `feature`, `idc`, or `mdc` (`idc` with `mls`)."""
    evaluate: Overrides = Field(default_factory=dict)
    """What differs from the preset's evaluation."""
    max_runtime_s: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Seconds that the job may run, all attempts together; left out: the operator's limit, if there is one."""
    dry_run: bool = False
    """Answer with what the job would be and take (200), and queue nothing."""


Phase = Literal["queued", "loading", "preparing", "condensing", "evaluating", "publishing"]


class Progress(Shown):
    """How far a job is."""

    phase: Phase = "queued"
    step: int = 0
    """Steps done in this phase (preparing: networks of the pool; condensing: outer loops)."""
    total: int | None = None
    """Steps of this phase."""
    eta_s: float | None = None
    """Expected seconds until the phase ends."""
    loss: float | None = None
    """Matching loss, mean over the last outer loop."""
    mls: int | list[int] | None = None
    """Selected size n of the most learnable subset; with `class_wise` one per class."""

    @classmethod
    def of(cls, state: JobState, attempt: int, reported: dict[str, Any] | None) -> Self:
        """What the worker reported last; before its first report a running job is loading its data."""
        if state is JobState.QUEUED:
            return cls.model_validate({**(reported or {}), "phase": "queued", "eta_s": None})
        default = "queued" if attempt == 0 else "loading"
        return cls.model_validate({"phase": default, **(reported or {})})


class JobEstimate(Shown):
    """What a job was expected to take when it was submitted."""

    memory_bytes: int
    """Peak memory of its process."""
    flops: float
    """Floating point operations of condensing and evaluating."""
    seconds: float | None
    """Wall time on the largest worker that was there, waiting aside; null when none was."""
    seconds_pool: float | None = None
    """Of training the networks of a pool, as if none were there, which is a part of `seconds`; null likewise."""
    seconds_per_outer_loop: float | None
    """Of one outer loop; null likewise."""
    seconds_evaluation: float | None
    """Of the evaluation, which is a part of `seconds`; null likewise."""

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """A stored `mdc_core.config.estimate.Estimate` as callers see it."""
        return cls.model_validate({**stored, "seconds": stored["seconds_total"]})


class ShorterJob(Shown):
    """Changes to a request with which the job would take about an hour, or as little as they can make of it."""

    condense: dict[str, Any]
    evaluate: dict[str, Any]
    image_size: int | None
    """Null: as it is."""
    preset: str | None
    """Named beside another side, which would by itself get another preset."""
    seconds: float
    """What it would take."""

    @classmethod
    def of(cls, less: Shorter) -> Self:
        """The changes as callers send them."""
        return cls.model_validate(less, from_attributes=True)


class JobPlan(Shown):
    """What a job would be and take; nothing was queued."""

    dataset: str
    name: str
    preset: str
    """The settings that it starts from."""
    facts: DataFacts
    """What is known of the data; `image_size` is the side that the images get."""
    condense: CondenseConfig
    evaluate: EvaluateConfig
    max_runtime_s: int | None
    estimate: JobEstimate
    minutes: float | None
    """Time that decided the schedule; null: it was given."""
    chosen: str | None
    """What was chosen for these data and for the time, and why; null: nothing out of the ordinary."""
    shorter: ShorterJob | None
    """Null when it takes no more than an hour, or when no worker tells."""


class JobError(Shown):
    """Why a job failed."""

    code: str
    detail: str


class SetLink(Shown):
    """The version of the set that a job published."""

    name: str
    version: int
    url: str


def _as_it_is(kind: type[C], values: dict[str, Any]) -> C:
    """A job's configuration to be looked at, even one that only an earlier release accepted."""
    try:
        return kind.stored(values)
    except ConfigError:
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return kind.model_construct(
            **{**plain, "network": NetworkConfig.model_construct(**values["network"])}
        )


class JobOut(Shown):
    """A condensation and where it is."""

    id: str
    state: JobState
    dataset: str
    name: str
    owner: str
    """Id of the key that submitted it."""
    condense: CondenseConfig
    evaluate: EvaluateConfig
    facts: DataFacts | None
    """What was read of the data; `image_size` is the side that the images get. Null for jobs of earlier releases."""
    minutes: float | None
    """Time that decided its schedule; null: it was given."""
    chosen: str | None
    """What was chosen for these data and for the time, and why; null: nothing out of the ordinary."""
    max_runtime_s: int | None
    """Seconds that it may run, all attempts together; waiting in the queue does not count."""
    estimate: JobEstimate | None
    """Null for jobs of earlier releases."""
    progress: Progress
    attempt: int
    """Times that a worker has taken it up."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: JobError | None
    set: SetLink | None
    links: dict[str, str]

    @classmethod
    def of(cls, job: Job) -> Self:
        """The job as callers see it."""
        here = f"/v1/jobs/{job.id}"
        links = {
            "self": here,
            "cancel": f"{here}/cancel",
            "events": f"{here}/events",
            "stream": f"{here}/events/stream",
        }
        published = None
        if job.set_version is not None:
            published = SetLink(
                name=job.name, version=job.set_version, url=f"/v1/sets/{job.name}@{job.set_version}"
            )
            links["set"] = published.url
        return cls(
            id=job.id,
            state=job.state,
            dataset=job.dataset,
            name=job.name,
            owner=job.owner_id,
            condense=_as_it_is(CondenseConfig, job.condense),
            evaluate=_as_it_is(EvaluateConfig, job.evaluate),
            facts=job.facts and DataFacts.model_validate(job.facts),
            estimate=job.estimate and JobEstimate.of(job.estimate),
            minutes=job.minutes,
            chosen=job.chosen,
            max_runtime_s=job.max_runtime_s,
            progress=Progress.of(job.state, job.attempt, job.progress),
            attempt=job.attempt,
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            error=None
            if job.error_code is None
            else JobError(code=job.error_code, detail=job.error_detail or ""),
            set=published,
            links=links,
        )


class JobEventOut(Shown):
    """A change of a job's state."""

    id: int
    """Larger than those of the job's earlier events."""
    state: JobState
    """What it changed to."""
    attempt: int
    """Times that a worker had taken the job up."""
    detail: str | None
    """Why, for people."""
    created_at: datetime

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """The event as callers see it."""
        return cls.model_validate(event, from_attributes=True)


class DatasetOut(Shown):
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


class SetOut(Shown):
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


class PlanOut(Shown):
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


def _in_future(moment: datetime) -> datetime:
    """In UTC. Both bounds come before it: there are times that no other zone can tell."""
    now = utcnow()
    if moment <= now + timedelta(seconds=1):
        raise ValueError(f"{moment.isoformat()} has passed: give a time to come, or leave it out")
    if moment > now + LONGEST_KEY:
        years = LONGEST_KEY.days // 365
        raise ValueError(
            f"{moment.isoformat()} is more than {years} years away: give an earlier time, or leave it out"
        )
    return moment.astimezone(UTC)


class KeyRequest(Body):
    """An API key to make."""

    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]
    """What it is for."""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))]
    """What it may do; `admin` implies the others."""
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_future)] | None = None
    """When it ceases to work, within 100 years; left out: never."""


class KeyOut(Shown):
    """An API key without its secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """The key as admins see it."""
        return cls.model_validate(key, from_attributes=True)


class NewKey(KeyOut):
    """A key that was just made."""

    key: str
    """The key itself: it is shown this once."""
