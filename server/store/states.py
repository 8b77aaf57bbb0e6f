"""The states of a job and the transitions between them; only `server.store.jobs.move` makes one."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is; the value is what the API shows and the database holds."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    """A running job that is asked to stop; its worker is still writing the checkpoint."""
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
"""From each state, those it may change to. A requeue is `running → queued`."""

ENDED = frozenset(state for state, following in ALLOWED.items() if not following)
"""States that nothing follows."""

HELD = frozenset({JobState.RUNNING, JobState.CANCELING})
"""States in which a worker holds the lease."""


def sources(target: JobState) -> frozenset[JobState]:
    """The states that may change to `target`."""
    return frozenset(state for state, following in ALLOWED.items() if target in following)
