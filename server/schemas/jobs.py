"""Jobs as requests and responses. The configurations are `mdc_core.config.settings`'s own."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field

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
from mdc_core.errors import ConfigError
from server.schemas.base import RequestBody, ResponseBody, Slug
from server.store.states import JobState
from server.store.tables import Job, JobEvent

C = TypeVar("C", CondenseConfig, EvaluateConfig)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity, but Python reads 1e999 as one, and no database would store it."""
    for name, value in values.items():
        if isinstance(value, dict):
            _finite(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: give a finite number")
    return values


Overrides = Annotated[dict[str, Any], AfterValidator(_finite)]


class JobRequest(RequestBody):
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
    """Changes to the preset's condensation. `method` is `feature`, `idc`, `mdc` (`idc` with `mls`) or `dream`."""
    evaluate: Overrides = Field(default_factory=dict)
    """What differs from the preset's evaluation."""
    max_runtime_s: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Seconds that the job may run, all attempts together; left out: the operator's limit, if there is one."""
    dry_run: bool = False
    """Answer with what the job would be and take (200), and queue nothing."""


Phase = Literal["queued", "loading", "preparing", "condensing", "evaluating", "publishing"]


class Progress(ResponseBody):
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


class JobEstimate(ResponseBody):
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


class ShorterJob(ResponseBody):
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


class JobPlan(ResponseBody):
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


class JobError(ResponseBody):
    """Why a job failed."""

    code: str
    detail: str


class SetLink(ResponseBody):
    """The version of the set that a job published."""

    name: str
    version: int
    url: str


def _as_it_is(kind: type[C], values: dict[str, Any]) -> C:
    """A job's configuration for display, even if only an earlier release accepted it."""
    try:
        return kind.stored(values)
    except ConfigError:
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return kind.model_construct(
            **{**plain, "network": NetworkConfig.model_construct(**values["network"])}
        )


class JobResponse(ResponseBody):
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


class JobEventResponse(ResponseBody):
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
