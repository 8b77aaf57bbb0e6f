"""The child process: runs one attempt of a job, from its last checkpoint to the published set.

    python -m worker.runner JOB_ID ATTEMPT

The supervisor starts it. It ends when its standard input closes, since the supervisor is gone then. On SIGTERM it
writes a checkpoint first. The attempt's number fences all its writes to the database.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import structlog
import torch
from pydantic import TypeAdapter

from mdc_core.condensation import checkpoint
from mdc_core.condensation.condense import CondenseState, Step, condense, prepare, result
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from mdc_core.data.real_set import DataSet
from mdc_core.errors import MdcError
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.system.parent import when_parent_ends
from mdc_core.training.evaluate import Trial, evaluate
from server.logs import configure_logging
from server.settings import Settings
from server.store import jobs
from server.store.db import Database
from server.store.errors import STORE_ERRORS
from server.store.objects import ObjectStore, open_objects
from server.store.tables import Job
from worker.data import load_job_data
from worker.exits import DONE, IO_ERROR, STOPPED, UNAVAILABLE
from worker.pools import ObjectPools
from worker.publish import publish
from worker.stopping import Stopping, StopRequestedError

_TRIALS = TypeAdapter(list[Trial])


class FencedOutError(Exception):
    """The job belongs to another attempt, or has ended."""


@dataclass
class Attempt:
    """What every phase of an attempt uses."""

    settings: Settings
    database: Database
    objects: ObjectStore
    job: Job
    config: CondenseConfig
    recipe: EvaluateConfig
    device: torch.device
    stopping: Stopping
    saved_at: float = 0.0
    """When the latest checkpoint was written (monotonic clock, seconds)."""

    def report(self, phase: str, step: int, total: int, eta: float | None = None, **more: object) -> None:
        """Record progress. Raises `FencedOutError` if this attempt no longer holds the job."""
        self.stopping.check()
        progress = {"phase": phase, "step": step, "total": total, "eta_s": eta, **more}
        with self.database.begin() as session:
            if not jobs.report(session, self.job.id, self.job.attempt, progress):
                raise FencedOutError

    def save(self, state: CondenseState) -> None:
        """Store a checkpoint, refer to it in the job, and delete the one before it."""
        key = f"jobs/{self.job.id}/{self.job.attempt}-{state.outer}.checkpoint"
        self.objects.put(key, checkpoint.to_bytes(state, self.config))
        with self.database.begin() as session:
            held = jobs.held(session, self.job.id, self.job.attempt)
            previous = held and held.checkpoint_key
            if not jobs.save_checkpoint(session, self.job.id, self.job.attempt, key, state.outer):
                raise FencedOutError
        if previous and previous != key:
            self.objects.delete(previous)
        self.saved_at = time.monotonic()

    @property
    def trials_key(self) -> str:
        """Key of the evaluation's trainings so far. Every attempt computes the same ones, so the next can go on."""
        return f"jobs/{self.job.id}/trials.json"


def main(argv: list[str]) -> int:
    """Run the attempt; returns the exit status (see `worker.exits`)."""
    stopping = Stopping()
    stopping.listen()
    when_parent_ends(_kill)  # the supervisor is gone: another attempt will resume the job
    job_id, attempt = argv[0], int(argv[1])
    configure_logging()
    structlog.contextvars.bind_contextvars(job_id=job_id, attempt=attempt)
    log = structlog.get_logger()
    keep_freed_memory()
    settings = Settings()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            job = jobs.get(session, job_id)
        if job is None or job.attempt != attempt:
            raise FencedOutError
        _run(
            Attempt(
                settings=settings,
                database=database,
                objects=open_objects(settings.objects_url),
                job=job,
                config=CondenseConfig.stored(job.condense),
                recipe=EvaluateConfig.stored(job.evaluate),
                device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
                stopping=stopping,
            )
        )
    except StopRequestedError:
        log.info("stopped")
        return STOPPED
    except FencedOutError:
        log.warning("another attempt holds the job")
    except (MdcError, MemoryError, torch.OutOfMemoryError) as error:
        # Every further attempt would fail in the same way, so the job ends here with the reason.
        log.warning("attempt failed", error=str(error))
        with database.begin() as session:
            jobs.fail(session, job_id, attempt, *_reason(error))
    except STORE_ERRORS as error:
        log.warning("a store does not answer", error=repr(error))
        return UNAVAILABLE
    except OSError as error:
        log.warning("a file could not be read or written", error=repr(error))
        return IO_ERROR
    finally:
        database.dispose()
    return DONE


def _run(attempt: Attempt) -> None:
    attempt.report("loading", 0, 1)
    with attempt.stopping.interruptible():
        data = load_job_data(attempt.job, attempt.settings, attempt.database, attempt.objects)
    state = _condense(attempt, data)
    trials = _evaluate(attempt, data, state)
    attempt.report("publishing", 0, 1)
    published = publish(attempt.database, attempt.objects, attempt.job, attempt.recipe, data, state, trials)
    if published is None:
        attempt.report("publishing", 0, 1)  # raises if the job was fenced out
        raise StopRequestedError  # else a cancellation came in between: the supervisor settles it


def _condense(attempt: Attempt, data: DataSet) -> CondenseState:
    """Run the outer loops after the job's checkpoint. Checkpoints at intervals, at the end, and when stopped."""
    state = _resumed(attempt)
    total = attempt.config.outer_loops
    saved = state.outer if state else 0
    pools = ObjectPools(attempt.objects)
    if saved < total:
        _prepare(attempt, data, pools)
    attempt.report("condensing", saved, total)
    attempt.saved_at = time.monotonic()
    durations: list[float] = []
    try:
        for step in attempt.stopping.between(
            condense(attempt.config, data.train, attempt.device, resume=state, pools=pools)
        ):
            state = step.state
            durations.append(step.seconds)
            _report_step(attempt, step, durations)
            due = time.monotonic() - attempt.saved_at >= attempt.settings.checkpoint_seconds
            if due or step.outer == total:
                attempt.save(state)
                saved = step.outer
    except StopRequestedError:
        if state is not None and state.outer > saved:
            attempt.save(state)
        raise
    assert state is not None  # either a checkpoint existed, or at least one loop ran
    return state


def _prepare(attempt: Attempt, data: DataSet, pools: ObjectPools) -> None:
    """Train the network pool, if the job uses one. Networks of earlier attempts and jobs are reused."""
    total = attempt.config.pool
    if not total:
        return
    attempt.report("preparing", 0, total)
    started = time.monotonic()
    # A stop may interrupt a write to the object store: writes are atomic, so that is safe.
    members = prepare(attempt.config, data.train, attempt.device, pools=pools)
    for member in attempt.stopping.between(members):
        seconds_each = (time.monotonic() - started) / member.number
        attempt.report("preparing", member.number, total, seconds_each * (total - member.number))


def _resumed(attempt: Attempt) -> CondenseState | None:
    """The job's checkpoint; None if there is none, or if it was lost, so that the job starts again."""
    key = attempt.job.checkpoint_key
    if key is None:
        return None
    try:
        return checkpoint.resume(attempt.objects.get(key), attempt.config)
    except FileNotFoundError:
        structlog.get_logger().warning("checkpoint missing: the job starts again", key=key)
        return None


def _report_step(attempt: Attempt, step: Step, durations: list[float]) -> None:
    left = step.total - step.outer
    mls = step.selected() if attempt.config.uses_mls else ()
    attempt.report(
        "condensing", step.outer, step.total, _mean(durations) * left, loss=step.loss, mls=list(mls)
    )


def _evaluate(attempt: Attempt, data: DataSet, state: CondenseState) -> list[Trial]:
    """Train the evaluation's networks on the set as delivered. Trainings of earlier attempts are reused."""
    trials: list[Trial] = []
    if attempt.objects.head(attempt.trials_key) is not None:
        stored = _TRIALS.validate_json(attempt.objects.get(attempt.trials_key))
        trials = [replace(trial, epochs=trial.epochs or attempt.recipe.epochs) for trial in stored]
    total = attempt.recipe.trainings(attempt.config.ipc, attempt.config.factor)
    delivered = result(state, data.train).delivered()
    started, reused = time.monotonic(), len(trials)
    attempt.report("evaluating", reused, total)
    missing = evaluate(delivered, data, attempt.recipe, attempt.device, done=tuple(trials))
    for trial in attempt.stopping.between(missing):
        trials.append(trial)
        attempt.objects.put(attempt.trials_key, _TRIALS.dump_json(trials))
        seconds_each = (time.monotonic() - started) / (len(trials) - reused)
        attempt.report("evaluating", len(trials), total, seconds_each * (total - len(trials)))
    return trials


def _reason(error: BaseException) -> tuple[str, str]:
    """Error code and detail of a failure, for the caller to act on."""
    if isinstance(error, MdcError):
        return type(error).__name__.removesuffix("Error").lower() + "-error", str(error)
    return (
        "out-of-memory",
        f"the worker ran out of memory: lower ipc, width or batch ({error})",
    )


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _kill() -> None:
    """Kill this process and every process that it has started."""
    if os.getpgid(0) == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
