"""What a job is expected to take, and what no worker can take."""

from __future__ import annotations

import pytest

from mdc_core.config import CondenseConfig, EvaluateConfig
from mdc_core.estimate import Speed, estimate
from mdc_core.presets import NAMED
from server.store import workers
from server.store.db import Database
from tests.server.conftest import Api
from tests.server.test_api_jobs import submit

# The newest SQLAlchemy deprecates an option that kombu's transport uses.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

MACHINE = {"host": "here", "device": "a CPU", "gpu": False, "flops": 1e9, "bandwidth": 1e8, "start": 1e-3}


def register(db: Database, worker_id: str, memory: int, seconds: float = 60, *, gpu: bool = False) -> None:
    with db.begin() as session:
        machine = {**MACHINE, "gpu": gpu}
        workers.register(session, worker_id, memory_bytes=memory, seconds=seconds, **machine)  # type: ignore[arg-type]


def largest(db: Database) -> str | None:
    with db.read() as session:
        worker = workers.largest(session)
        return worker and worker.id


def test_workers_come_live_and_go(db: Database) -> None:
    assert largest(db) is None
    register(db, "small", 10)
    register(db, "large", 20)
    register(db, "gone", 30, seconds=-1)
    assert largest(db) == "large"
    with db.begin() as session:
        assert workers.beat(session, "gone", 60)
    assert largest(db) == "gone"
    with db.begin() as session:
        workers.leave(session, "gone")
        assert not workers.beat(session, "gone", 60)
    register(db, "large", 5)
    assert largest(db) == "small"


def test_a_gpu_s_memory_is_estimated_as_it_is_planned(api: Api) -> None:
    register(api.services.db, "gpu", 80 * 10**9, gpu=True)
    job = submit(api)
    configs = CondenseConfig.model_validate(job["condense"]), EvaluateConfig.model_validate(job["evaluate"])
    expected = estimate(configs[0], NAMED["digits"], configs[1], memory_limit=80 * 10**9, gpu=True)
    assert job["estimate"]["memory_bytes"] == expected.memory_bytes


def test_a_job_without_a_worker_has_an_estimate_without_time(api: Api) -> None:
    job = submit(api)
    assert job["estimate"]["seconds"] is None
    expected = estimate(
        CondenseConfig.model_validate(job["condense"]),
        NAMED["digits"],
        EvaluateConfig.model_validate(job["evaluate"]),
        speed=Speed(1e9, 1e8, 1e-3),
    )
    assert job["estimate"]["memory_bytes"] == expected.memory_bytes
    assert job["estimate"]["flops"] == expected.flops
    register(api.services.db, "one", 2**40)
    assert submit(api)["estimate"]["seconds"] == expected.seconds_total
    assert api.client.get(job["links"]["self"], headers=api.admin).json()["estimate"] == job["estimate"]


def test_what_fits_no_worker_is_refused_with_both_figures(api: Api) -> None:
    register(api.services.db, "small", 2 * 10**9)
    register(api.services.db, "tiny", 10**9)
    answer = api.client.post(
        "/v1/jobs", json={"dataset": "cifar10", "condense": {"ipc": 500}}, headers=api.admin
    )
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "does-not-fit"
    assert problem["needed_bytes"] > problem["available_bytes"] == 2 * 10**9
    assert "the largest worker has 2.0 GB: lower condense.ipc, condense.network.width" in problem["detail"]
    assert problem["errors"][0]["field"] == "condense.ipc"
    assert api.client.get("/v1/jobs", headers=api.admin).json()["data"] == []
