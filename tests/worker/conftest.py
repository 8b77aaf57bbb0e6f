"""A service's stores in a folder, without API and broker, and a supervisor on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mdc_core.config.presets import condense_config, evaluate_config
from server.access.tokens import create_key
from server.jobs.wakeup import Wakeup
from server.settings import Settings
from server.store import jobs, sets
from server.store.db import Database
from server.store.objects import ObjectStore, open_objects
from server.store.tables import Job
from worker.supervisor import Supervisor

CONDENSE = {
    "ipc": 2,
    "network": {"depth": 2, "width": 4},
    "outer_loops": 25,
    "inner_iterations": 1,
    "mls_period": 2,
    "n_data": 64,
    "batch_real": 8,
}
EVALUATE = {"network": {"depth": 2, "width": 4}, "epochs": 2, "repeats": 1}


class RecordedWakeup(Wakeup):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, job_id: str) -> None:
        self.sent.append(job_id)


@dataclass
class Stores:
    """What a worker works on."""

    settings: Settings
    database: Database
    objects: ObjectStore
    owner_id: str
    wakeup: RecordedWakeup = field(default_factory=RecordedWakeup)
    stop: threading.Event = field(default_factory=threading.Event)

    def supervisor(self) -> Supervisor:
        return Supervisor(self.settings, self.database, self.objects, self.wakeup, "tests", self.stop)

    def submit(self, dataset: str = "digits", **condense: Any) -> str:
        """Queue a toy job with a set name of its own; its id."""
        with self.database.begin() as session:
            earlier = jobs.page(session, owner_id=None, state=None, after=None, limit=99)
            name = f"toy-{len(earlier)}"
            assert sets.claim_name(session, name, self.owner_id)
            job = jobs.submit(
                session,
                owner_id=self.owner_id,
                dataset=dataset,
                name=name,
                condense=condense_config("digits", CONDENSE | condense).model_dump(mode="json"),
                evaluate=evaluate_config("digits", EVALUATE, ipc=2, factor=1).model_dump(mode="json"),
            )
            return job.id

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            job = jobs.get(session, job_id)
        assert job is not None
        return job

    def digest(self, job_id: str) -> str:
        """sha256 of the set that a job published."""
        job = self.job(job_id)
        with self.database.read() as session:
            published = sets.get(session, job.name, job.set_version)
        assert published is not None
        digest: str = published.manifest["object"]["sha256"]
        return digest

    def wait_for(self, job_id: str, condition: Callable[[Job], bool], seconds: float = 120) -> Job:
        """Poll until the job is as wanted."""
        pause = threading.Event()
        for _ in range(int(seconds / 0.02)):
            job = self.job(job_id)
            if condition(job):
                return job
            pause.wait(0.02)
        raise AssertionError(f"not within {seconds} s: {job.state} {job.progress} {job.error_detail}")


@pytest.fixture
def stores(installation: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    for name, value in {
        "CHECKPOINT_SECONDS": "0",
        "KILL_GRACE_SECONDS": "60",
        "STUCK_SECONDS": "30",
    }.items():
        monkeypatch.setenv(f"MDC_{name}", value)
    settings = Settings()
    database = Database(settings.database_url)
    with database.begin() as session:
        key, _ = create_key(session, settings.secret_key(), name="tests", scopes=["admin"])
    yield Stores(settings, database, open_objects(settings.objects_url), key.id)
    database.dispose()
