"""Turn a request into a queued job. Every setting is resolved and checked before a worker sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import Session

from mdc_core.config.defaults import Choice, choose, sentences
from mdc_core.config.minutes import UNKNOWN, Wanted, in_time
from mdc_core.config.presets import (
    NAMED,
    check_preset,
    default_side,
    evaluate_config,
    merge,
)
from mdc_core.config.settings import (
    CondenseConfig,
    DataFacts,
    EvaluateConfig,
    check_fixed_size,
    check_network,
)
from mdc_core.config.shorten import duration
from mdc_core.errors import ConfigError
from server.access.callers import Caller
from server.access.quotas import check_jobs
from server.jobs.admission import Admitted, admit, largest
from server.schemas.jobs import JobEstimate, JobPlan, JobRequest, ShorterJob
from server.settings import Settings
from server.store import datasets, idempotency, jobs, sets
from server.store.db import Database
from server.store.tables import IdempotencyKey, Job
from server.web.problems import FieldError, Problem, field_errors, invalid

T = TypeVar("T")

_EPOCH_SHARES = (0.3, 0.1)
"""Additional, shorter trainings in the evaluation of a user's own data, for devices with little time."""
_RUNTIME_SHARE = 0.8
"""Share of the maximum running time that a schedule may use."""
_BESIDE_SECONDS, _BESIDE_SHARE = 10.0, 0.1
"""Time reserved for what no estimate covers (starting, reading data, publishing): seconds, and share at most."""


@dataclass(frozen=True)
class Resolved:
    """A request with every setting resolved."""

    dataset: str
    name: str
    preset: str
    facts: DataFacts
    """With the image size of the job."""
    condense: CondenseConfig
    evaluate: EvaluateConfig
    minutes: float | None
    """The time from which the schedule was chosen; None: the request gave the schedule."""
    chosen: str | None
    """Settings that the service chose, and why, as a sentence."""
    max_runtime_s: int | None
    """Maximum running time; None: no limit."""


def plan(db: Database, caller: Caller, request: JobRequest, settings: Settings) -> JobPlan:
    """The job that `submit` would queue, with its estimate.

    Raises `Problem` as `submit` does, but checks neither the set's name nor the number of jobs.
    """
    with db.read() as session:
        resolved = resolve(session, caller, request, settings)
        admitted = _admitted(session, resolved, settings)
    less = admitted.shorter() if resolved.minutes is None else None  # else it takes as long as requested
    return JobPlan(
        dataset=resolved.dataset,
        name=resolved.name,
        preset=resolved.preset,
        facts=resolved.facts,
        condense=resolved.condense,
        evaluate=resolved.evaluate,
        max_runtime_s=resolved.max_runtime_s,
        estimate=JobEstimate.of(admitted.estimate.to_dict()),
        minutes=resolved.minutes,
        chosen=resolved.chosen,
        shorter=None if less is None else ShorterJob.of(less),
    )


def submit(
    db: Database, caller: Caller, request: JobRequest, idempotency_key: str | None, settings: Settings
) -> Job:
    """Queue the job, or return the one that the same request with the same idempotency key has queued.

    `settings` hold the operator's limits: jobs per key, running time, and estimated time.

    Raises:
        Problem: 422 for settings that are impossible, too large for every worker, or estimated to take too long; 409
            if the set name belongs to another key; 429 if too many of the caller's jobs wait or run.
    """
    signature = None if idempotency_key is None else (idempotency_key, _digest(request))
    # Slow work comes before the writing transaction, which blocks others: on SQLite, all of them.
    with db.read() as session:
        resolved = resolve(session, caller, request, settings)
        if signature is not None and (first := idempotency.find(session, caller.key_id, signature[0])):
            return _first_answer(session, first, signature[1])
        estimate = _admitted(session, resolved, settings).estimate.to_dict()
    parts = (resolved.condense, resolved.evaluate, resolved.facts)
    condense, evaluate, facts = (part.model_dump(mode="json") for part in parts)
    with db.begin() as session:
        if signature is not None and (first := idempotency.reserve(session, caller.key_id, *signature)):
            return _first_answer(session, first, signature[1])
        _claim(session, resolved.name, caller, settings)
        job = jobs.submit(
            session,
            owner_id=caller.key_id,
            dataset=resolved.dataset,
            name=resolved.name,
            condense=condense,
            evaluate=evaluate,
            max_runtime_s=resolved.max_runtime_s,
            facts=facts,
            estimate=estimate,
            minutes=resolved.minutes,
            chosen=resolved.chosen,
        )
        if signature is not None:
            idempotency.answer(session, caller.key_id, signature[0], job.id)
    return job


def _admitted(session: Session, resolved: Resolved, settings: Settings) -> Admitted:
    most = settings.max_expected_seconds or None
    return admit(session, resolved.preset, resolved.condense, resolved.evaluate, resolved.facts, most)


def _claim(session: Session, name: str, caller: Caller, settings: Settings) -> None:
    """Claim the set's name and check the job quota. Raises `Problem` 409 or 429."""
    if not sets.claim_name(session, name, caller.key_id):
        raise Problem(
            409,
            "set-name-taken",
            f"the set name {name!r} belongs to another key: choose another name",
            errors=[FieldError(field="name", message="belongs to another key")],
        )
    check_jobs(session, caller.key_id, settings.key_jobs)


def _max_runtime(request: JobRequest, most: int | None) -> int | None:
    """The requested running time, or else the operator's limit. Raises `Problem` 422 above that limit."""
    asked = request.max_runtime_s
    if asked is not None and most is not None and asked > most:
        message = f"jobs may run for at most {most} s here (it is {asked}): ask for less, or leave it out"
        raise invalid("invalid-request", [FieldError(field="max_runtime_s", message=message)])
    return most if asked is None else asked


def _digest(request: JobRequest) -> str:
    """Digest for comparing requests. Fields unknown to older releases count only if given."""
    later = {name for name in ("max_runtime_s", "image_size", "minutes") if getattr(request, name) is None}
    body = json.dumps(request.model_dump(mode="json", exclude={"dry_run", *later}), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


def _first_answer(session: Session, first: IdempotencyKey, digest: str) -> Job:
    if first.body_sha256 != digest:
        raise Problem(
            422,
            "idempotency-mismatch",
            "this Idempotency-Key was sent with another body before: use a new key for a new job",
        )
    job = None if first.job_id is None else jobs.get(session, first.job_id)
    assert job is not None, "a key is committed together with its job"
    return job


def resolve(session: Session, caller: Caller, request: JobRequest, settings: Settings) -> Resolved:
    """Fill in what the request leaves to the preset, the data and the time, and check it. `Problem` 422."""
    facts = _facts(session, caller, request)
    choice = _choice(request, facts)
    condense = choice.condense
    evaluate = _checked("evaluate", lambda: _recipe(request, choice.preset, condense))
    _checked("condense", lambda: condense.check_data(facts))
    _checked("evaluate.sizes", lambda: evaluate.sizes_of(condense.ipc))
    _checked("evaluate.network", lambda: check_network(evaluate.network, facts.image_size))
    max_runtime_s = _max_runtime(request, settings.max_runtime_seconds)
    resolved = Resolved(
        dataset=request.dataset,
        name=request.name if request.name is not None else f"{facts.name[:50]}-ipc{condense.ipc}",
        preset=choice.preset,
        facts=facts,
        condense=condense,
        evaluate=evaluate,
        minutes=None,
        chosen=choice.lowered,
        max_runtime_s=max_runtime_s,
    )
    runtime = None if max_runtime_s is None else _RUNTIME_SHARE * max_runtime_s
    limits = [most for most in (settings.max_expected_seconds, runtime) if most]
    return resolved if choice.minutes is None else _in_time(session, request, resolved, choice, limits)


def _choice(request: JobRequest, facts: DataFacts) -> Choice:
    """The settings that the request means on these data. Raises `Problem` 422."""
    if request.preset is not None:
        _checked("preset", partial(check_preset, request.preset))
    made = partial(choose, facts, request.preset, request.condense, is_own=request.dataset not in NAMED)
    choice = _checked("condense", made)
    return choice if request.minutes is None else _checked("minutes", partial(made, minutes=request.minutes))


def _recipe(request: JobRequest, preset: str, condense: CondenseConfig) -> EvaluateConfig:
    """The requested evaluation. By default it uses the network of the condensation."""
    own = request.dataset not in NAMED and request.preset not in NAMED  # their published schedules apply
    shares = _EPOCH_SHARES if own or preset == "digits" else ()
    judged = merge({"network": condense.network.model_dump(), "epoch_shares": shares}, request.evaluate)
    return evaluate_config(preset, judged, ipc=condense.ipc, factor=condense.factor)


def _in_time(
    session: Session, request: JobRequest, resolved: Resolved, choice: Choice, limits: list[float]
) -> Resolved:
    """The job with a schedule for its time on the largest worker. Raises `Problem` 422 above the limits."""
    assert choice.minutes is not None
    seconds = 60 * choice.minutes
    if choice.is_default_time:
        seconds = min([seconds, *limits])
    elif limits and seconds > min(limits):
        message = f"jobs may take {duration(min(limits))} here (it is {choice.minutes:g}): ask for less"
        raise invalid("invalid-request", [FieldError(field="minutes", message=message)])
    machine = largest(session)
    wanted = Wanted(
        choice.condense,
        resolved.facts,
        choice.widths,
        choice.may_shrink,
        recipe=partial(_recipe, request, choice.preset),
        given=frozenset(request.evaluate),
    )
    beside = min(_BESIDE_SECONDS, _BESIDE_SHARE * seconds)
    timed = _checked(
        "minutes",
        lambda: in_time(wanted, seconds - beside, machine or UNKNOWN, or_longer=choice.is_default_time),
    )
    assert timed.evaluate is not None
    unknown = None if machine else "No worker is there to go by, so this is planned for one slow core"
    return replace(
        resolved,
        condense=timed.condense,
        evaluate=timed.evaluate,
        minutes=seconds / 60,
        chosen=sentences(choice.lowered, unknown, timed.chosen, timed.warning),
    )


def _facts(session: Session, caller: Caller, request: JobRequest) -> DataFacts:
    """The facts of the data set, with the image size of this job."""
    wanted = request.image_size
    if request.dataset in NAMED:
        facts = NAMED[request.dataset]
        _checked("image_size", lambda: check_fixed_size(facts.name, facts.image_size, wanted))
        return facts
    row = datasets.get(session, request.dataset, owner_id=caller.sees)
    if row is None:
        message = (
            f"there is no data set {request.dataset!r}: use {', '.join(NAMED)}, or the id of one that you "
            "uploaded"
        )
        raise invalid("unknown-dataset", [FieldError(field="dataset", message=message)])
    facts = DataFacts.model_validate(row.facts)
    if row.kind == "npz":
        _checked("image_size", lambda: check_fixed_size(facts.name, facts.image_size, wanted))
        return facts
    own = (
        facts.own_side or facts.image_size
    )  # an earlier release kept the side of the first image, 224 at most
    side = default_side(own, request.preset) if wanted is None else wanted
    return facts.model_copy(update={"own_side": own, "image_size": side})


def _checked(field: str, check: Callable[[], T]) -> T:
    """The result of `check`. Turns its errors into a 422 about `field`, or a field within it."""
    try:
        return check()
    except ValidationError as error:
        raise invalid("invalid-config", field_errors(error, field)) from error
    except ConfigError as error:
        raise invalid("invalid-config", [FieldError(field=field, message=str(error))]) from error
