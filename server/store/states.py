"""The states of a job and the allowed transitions. Only `server.store.jobs.move` changes a state."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    """Cancellation was requested; the worker has not stopped yet."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


ALLOWED: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELING, JobState.QUEUED}),
    JobState.CANCELING: frozenset({JobState.CANCELED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}
"""Allowed transitions, by source state. A requeue is `running → queued`."""

ENDED = frozenset(state for state, following in ALLOWED.items() if not following)
"""Final states."""

HELD = frozenset({JobState.RUNNING, JobState.CANCELING})
"""States in which a worker holds a lease."""


def sources(target: JobState) -> frozenset[JobState]:
    """The states that may change to `target`."""
    return frozenset(state for state, following in ALLOWED.items() if target in following)
