"""What a job is expected to take, and what no worker can take."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mdc_core.config.estimate import Speed, estimate
from mdc_core.config.presets import NAMED, merge
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from server.jobs.submit import _digest
from server.schemas.jobs import JobRequest
from server.store import datasets, workers
from server.store.db import Database
from tests.server.archives import arrays, image, zipped
from tests.server.conftest import Api
from tests.server.test_api_jobs import submit

# The newest SQLAlchemy deprecates an option that kombu's transport uses.
pytestmark = pytest.mark.process

MACHINE = {"host": "here", "device": "a CPU", "gpu": False, "flops": 1e9, "bandwidth": 1e8, "start": 1e-3}


def register(db: Database, worker_id: str, memory: int, seconds: float = 60, *, gpu: bool = False) -> None:
    with db.begin() as session:
        machine = {**MACHINE, "gpu": gpu}
        workers.register(session, worker_id, memory_bytes=memory, seconds=seconds, **machine)  # type: ignore[arg-type]


def largest(db: Database) -> str | None:
    with db.read() as session:
        worker = workers.largest(session)
        return worker.id if worker else None


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


PICTURES: dict[str, dict[str, Any]] = {
    "condense": {"method": "mdc", "ipc": 1, "factor": 1, "network": {"width": 8}},
    "evaluate": {"sizes": [1]},
}


def uploaded(api: Api, side: int = 100) -> str:
    """Id of a zip of pictures of that side, two of each class to condense."""
    names = [f"train/{label}/{number}.png" for label in ("cat", "dog") for number in range(3)]
    content = zipped({name: image(side, side + 20) for name in [*names, "test/cat/0.png", "test/dog/0.png"]})
    answer = api.client.post(
        "/v1/datasets", content=content, headers={**api.admin, "Content-Type": "application/zip"}
    )
    identifier: str = answer.json()["id"]
    return identifier


def planned(api: Api, **body: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/jobs", json={**body, "dry_run": True}, headers=api.admin)
    assert answer.status_code == 200, answer.text
    plan: dict[str, Any] = answer.json()
    return plan


def accept(api: Api, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service refuse jobs that are expected to take longer; 0: none."""
    changed = api.services.settings.model_copy(update={"max_expected_seconds": seconds})
    monkeypatch.setattr(api.client.app.state, "services", replace(api.services, settings=changed))  # type: ignore[attr-defined]


def test_a_dry_run_tells_what_the_job_would_be_and_queues_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(api, 0, monkeypatch)
    register(api.services.db, "one", 2**40)
    body = {"dataset": uploaded(api), **PICTURES}
    plan = planned(api, **body)
    assert api.client.get("/v1/jobs", headers=api.admin).json()["data"] == []
    job = api.client.post("/v1/jobs", json=body, headers=api.admin).json()
    both = plan.keys() & job.keys()
    assert both == plan.keys() - {"preset", "shorter"}
    assert {name: plan[name] for name in both} == {name: job[name] for name in both}
    assert plan["preset"] == "photos"
    assert plan["facts"]["own_side"] == 100
    assert (plan["facts"]["image_size"], plan["facts"]["images"], plan["facts"]["test_images"]) == (64, 6, 2)
    parts = plan["estimate"]["seconds_per_outer_loop"] * 2000 + plan["estimate"]["seconds_evaluation"]
    assert parts == pytest.approx(plan["estimate"]["seconds"])
    wrong = api.client.post("/v1/jobs", json={"dataset": "nope", "dry_run": True}, headers=api.admin)
    assert wrong.json()["code"] == "unknown-dataset"


def test_the_shorter_job_takes_what_it_says(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(api, 0, monkeypatch)
    assert planned(api, dataset="digits")["shorter"] is None  # no worker tells
    register(api.services.db, "one", 2**40)
    body: dict[str, Any] = {"dataset": uploaded(api), **PICTURES}
    less = planned(api, **body)["shorter"]
    assert less["seconds"] <= 3600
    shortened = {
        "dataset": body["dataset"],
        "condense": merge(body["condense"], less["condense"]),
        "evaluate": merge(body["evaluate"], less["evaluate"]),
        "image_size": less["image_size"],
        "preset": less["preset"],
    }
    again = planned(api, **shortened)
    assert again["estimate"]["seconds"] == pytest.approx(less["seconds"])
    assert again["shorter"] is None


def test_a_job_of_more_than_a_week_is_refused_unless_the_operator_says_otherwise(api: Api) -> None:
    register(api.services.db, "one", 2**40)
    body = {"dataset": uploaded(api), **PICTURES}
    problem = api.client.post("/v1/jobs", json=body, headers=api.admin).json()
    assert problem["code"] == "takes-too-long"
    assert "at most 7 days are accepted here" in problem["detail"]


def test_a_job_that_would_take_longer_than_the_operator_accepts_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(api, 7200.0, monkeypatch)
    body = {"dataset": uploaded(api), **PICTURES}
    assert planned(api, **body)["estimate"]["seconds"] is None  # without a worker nothing is known against it
    register(api.services.db, "one", 2**40)
    for more in ({}, {"dry_run": True}):
        answer = api.client.post("/v1/jobs", json={**body, **more}, headers=api.admin)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "takes-too-long")
        assert problem["expected_seconds"] > problem["accepted_seconds"] == 7200
        assert "at most 2 h are accepted here; about" in problem["detail"]
        assert '"outer_loops": ' in problem["detail"]
        assert problem["errors"][0]["field"] == "condense.outer_loops"
    assert api.client.get("/v1/jobs", headers=api.admin).json()["data"] == []
    short = {**body, "condense": {**PICTURES["condense"], "outer_loops": 1, "inner_iterations": 1}}
    short["evaluate"] = {"sizes": [1], "epochs": 1}
    assert api.client.post("/v1/jobs", json=short, headers=api.admin).status_code == 202


@pytest.mark.parametrize(
    ("more", "side"),
    [({}, 64), ({"image_size": 48}, 48), ({"preset": "imagenet-10"}, 100), ({"preset": "cifar10"}, 64)],
)
def test_the_side_of_pictures_is_chosen_per_job(api: Api, more: dict[str, Any], side: int) -> None:
    body = {"dataset": uploaded(api), **PICTURES, **more}
    assert planned(api, **body)["facts"]["image_size"] == side


def test_what_is_not_resized_is_refused_another_side(api: Api) -> None:
    content = arrays(x_train=np.zeros((6, 8, 8), np.uint8))
    answer = api.client.post(
        "/v1/datasets", content=content, headers={**api.admin, "Content-Type": "application/x-npz"}
    )
    for dataset in ("digits", answer.json()["id"]):
        body = {"dataset": dataset, "condense": {"ipc": 1, "factor": 1}}
        assert planned(api, **body, image_size=8)["facts"]["image_size"] == 8
        refused = api.client.post("/v1/jobs", json={**body, "image_size": 16}, headers=api.admin)
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (422, "invalid-config")
        assert problem["errors"][0]["field"] == "image_size"
        assert "are 8 pixels and are not resized" in problem["detail"]


def test_an_upload_of_an_earlier_release_gets_the_new_side(api: Api) -> None:
    dataset = uploaded(api)
    with api.services.db.begin() as session:
        row = datasets.get(session, dataset)
        assert row is not None
        row.facts = {
            **{name: row.facts[name] for name in ("name", "channels", "classes", "smallest_class", "images")},
            "image_size": 224,
        }
    facts = planned(api, dataset=dataset, **PICTURES)["facts"]
    assert (facts["image_size"], facts["own_side"], facts["test_images"]) == (64, 224, None)


def test_a_request_that_an_earlier_release_knew_has_the_digest_that_it_had() -> None:
    body = {"dataset": "digits", "name": "mine", "preset": None, "condense": {"ipc": 5}, "evaluate": {}}
    before = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    assert _digest(JobRequest.model_validate(body)) == before


def test_the_side_makes_another_request(api: Api) -> None:
    headers = {**api.admin, "Idempotency-Key": "one"}
    body = {"dataset": uploaded(api), **PICTURES}
    first = api.client.post("/v1/jobs", json=body, headers=headers).json()
    assert api.client.post("/v1/jobs", json={**body, "image_size": None}, headers=headers).json() == first
    other = api.client.post("/v1/jobs", json={**body, "image_size": 64}, headers=headers)
    assert other.json()["code"] == "idempotency-mismatch"
    assert planned(api, **body)["name"] == first["name"]
    told = api.client.post("/v1/jobs", json={**body, "dry_run": True}, headers={**headers})
    assert told.status_code == 200, "a dry run has nothing to repeat"


FAST = {"flops": 2e11, "bandwidth": 2.5e9, "start": 1e-3}


def test_an_upload_gets_ten_minutes_of_the_largest_worker(api: Api) -> None:
    with api.services.db.begin() as session:
        workers.register(session, "one", memory_bytes=2**40, seconds=60, **{**MACHINE, **FAST})  # type: ignore[arg-type]
    dataset = uploaded(api)
    job = submit(api, dataset=dataset, condense={})
    assert (job["minutes"], job["condense"]["method"], job["condense"]["ipc"]) == (10, "feature", 3)
    assert 0.85 * 600 < job["estimate"]["seconds"] <= 600
    assert job["chosen"].startswith(
        "The default ipc is lowered to 3 from 10, as a class has 3 training images. "
    )
    assert "Chosen for the time: " in job["chosen"]
    config, recipe = (
        CondenseConfig.model_validate(job["condense"]),
        EvaluateConfig.model_validate(job["evaluate"]),
    )
    assert (
        f"{config.pool} networks of width {config.network.width}, trained on {config.pool_samples}"
        in job["chosen"]
    )
    assert recipe.network == config.network
    assert api.client.get(job["links"]["self"], headers=api.admin).json() == job
    plan = planned(api, dataset=dataset, minutes=120)
    assert (plan["minutes"], plan["shorter"]) == (120, None)
    assert plan["estimate"]["seconds"] <= 7200
    assert "more time would bring nothing" in plan["chosen"], (
        "six images are learnt before two hours are over"
    )
    assert planned(api, dataset=dataset, minutes=120)["condense"] == plan["condense"]


def test_without_a_worker_a_time_is_planned_for_a_slow_one(api: Api) -> None:
    plan = planned(api, dataset=uploaded(api))
    assert plan["minutes"] == 10
    assert "No worker is there to go by, so this is planned for one slow core" in plan["chosen"]


def test_a_time_too_short_for_the_worker_is_told_with_what_is_enough(api: Api) -> None:
    slow = {"flops": 1e8, "bandwidth": 1e7, "start": 1e-2}
    with api.services.db.begin() as session:
        workers.register(session, "one", memory_bytes=2**40, seconds=60, **{**MACHINE, **slow})  # type: ignore[arg-type]
    plan = planned(api, dataset=uploaded(api), condense={})
    assert " updates are too few for images of " in plan["chosen"]
    enough = int(plan["chosen"].split("Ask for ")[1].split(" minutes")[0])
    assert enough > 10
    longer = planned(api, dataset=uploaded(api), condense={}, minutes=enough)
    assert "too few" not in longer["chosen"]


def test_what_has_a_schedule_has_no_time(api: Api) -> None:
    dataset = uploaded(api)
    small = {"ipc": 1, "factor": 1}
    for body in (
        {"dataset": "digits"},
        {"dataset": dataset, "condense": {**small, "pool": 2}},
        {"dataset": dataset, "condense": small, "preset": "cifar10"},
        {"dataset": dataset, "condense": {**small, "method": "mdc"}},
    ):
        plan = planned(api, **body)
        assert (plan["minutes"], plan["chosen"]) == (None, None)
    assert planned(api, dataset="digits", minutes=3)["minutes"] == 3


@pytest.mark.parametrize(
    ("more", "field", "message"),
    [
        ({"minutes": 5, "condense": {"outer_loops": 3}}, "minutes", "minutes chooses outer_loops by itself"),
        ({"minutes": 5, "preset": "cifar10", "condense": {"ipc": 1, "factor": 1}}, "minutes", "published schedule"),
        ({"minutes": 5, "condense": {"method": "mdc", "ipc": 1}}, "minutes", "this run is of method 'idc'"),
        ({"minutes": 0}, "minutes", "greater than 0"),
        ({"minutes": 1e-3}, "minutes", "ask for more minutes"),
        ({"minutes": 121}, "minutes", "jobs may take 2 h here (it is 121): ask for less"),
        ({"minutes": 5, "max_runtime_s": 300}, "minutes", "jobs may take 4 min here (it is 5): ask for less"),
        ({"condense": {"method": "mdc", "subset_loss": "all"}}, "condense", "method 'mdc' has subset_loss 'mls'"),
    ],
)  # fmt: skip
def test_a_time_that_cannot_be_kept_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], field: str, message: str
) -> None:
    accept(api, 7200.0, monkeypatch)
    refused = api.client.post("/v1/jobs", json={"dataset": uploaded(api), **more}, headers=api.admin)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_nobody_s_time_gives_way_to_the_operator_s(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(api, 420.0, monkeypatch)
    dataset = uploaded(api)
    assert planned(api, dataset=dataset)["minutes"] == 7
    assert planned(api, dataset=dataset, max_runtime_s=500)["minutes"] == pytest.approx(20 / 3)


def test_another_time_makes_another_request(api: Api) -> None:
    headers, body = {**api.admin, "Idempotency-Key": "one"}, {"dataset": uploaded(api)}
    first = api.client.post("/v1/jobs", json={**body, "minutes": 10}, headers=headers).json()
    assert api.client.post("/v1/jobs", json={**body, "minutes": 10}, headers=headers).json() == first
    other = api.client.post("/v1/jobs", json={**body, "minutes": 11}, headers=headers)
    assert other.json()["code"] == "idempotency-mismatch"
