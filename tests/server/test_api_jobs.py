"""Submitting, listing and canceling jobs over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from kombu.connection import Connection
from sqlalchemy import func, select, update

from mdc_core.config.presets import PRESETS
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from server.access.tokens import create_key
from server.app import create_app
from server.services import Services
from server.settings import Settings
from server.store import jobs, sets
from server.store.states import JobState
from server.store.tables import Job
from tests.server.conftest import Api, TestClient, bearer, sqlite_only
from tests.server.test_problems import check

# The newest SQLAlchemy deprecates an option that kombu's transport uses.
DIGITS = {"dataset": "digits", "condense": {"ipc": 5, "network": {"width": 8}, "seed": 7}}


def submit(api: Api, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/jobs", json={**DIGITS, **body}, headers=headers or api.admin)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def test_a_submission_is_resolved_to_whole_configurations(api: Api) -> None:
    answer = api.client.post("/v1/jobs", json={**DIGITS, "evaluate": {"sizes": [1, 5]}}, headers=api.admin)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert int(answer.headers["Retry-After"]) > 0
    condense = CondenseConfig.model_validate(job["condense"])
    evaluate = EvaluateConfig.model_validate(job["evaluate"])
    assert (condense.ipc, condense.seed) == (5, 7)
    preset = PRESETS["digits"]
    assert (condense.network.depth, condense.network.width) == (preset.condense["network"]["depth"], 8)
    assert (condense.method, preset.method) == ("feature", "feature")
    assert condense.outer_loops == preset.schedules["feature"]["outer_loops"] != CondenseConfig().outer_loops
    assert (evaluate.sizes, evaluate.epochs) == ((1, 5), preset.evaluate["epochs"])
    assert (job["state"], job["name"], job["attempt"]) == ("queued", "digits-ipc5", 0)
    assert job["progress"]["phase"] == "queued"
    assert (job["error"], job["set"], job["started_at"]) == (None, None, None)
    assert api.client.get(answer.headers["Location"], headers=api.admin).json() == job
    with api.services.db.read() as session:
        row = jobs.get(session, job["id"])
    assert row is not None
    assert CondenseConfig.model_validate(row.condense) == condense
    assert EvaluateConfig.model_validate(row.evaluate) == evaluate


def test_a_job_of_an_earlier_release_is_shown_with_the_baselines_that_it_had(api: Api) -> None:
    job = submit(api)
    assert job["evaluate"]["shrunk_baseline"]
    assert job["evaluate"]["epoch_shares"] == [0.3, 0.1]
    earlier = {name: value for name, value in job["evaluate"].items() if name != "shrunk_baseline"}
    with api.services.db.begin() as session:
        session.execute(update(Job).where(Job.id == job["id"]).values(evaluate=earlier))
    found = api.client.get(f"/v1/jobs/{job['id']}", headers=api.admin).json()
    assert found["evaluate"] == {**earlier, "shrunk_baseline": False}


@pytest.mark.parametrize(("factor", "cutmix"), [(2, 0.0), (1, 0.5)])
def test_an_evaluation_goes_by_the_set_that_is_condensed(api: Api, factor: int, cutmix: float) -> None:
    """The published exception of MNIST."""
    job = submit(api, dataset="mnist", condense={"factor": factor, "outer_loops": 1})
    assert (job["condense"]["cutmix"], job["evaluate"]["cutmix"]) == (cutmix, cutmix)


def test_the_wake_up_reaches_the_broker(api: Api) -> None:
    job = submit(api)
    with Connection(api.services.settings.broker_url) as connection:
        message = connection.SimpleQueue("celery").get(timeout=5)
        message.ack()
    assert message.headers["task"] == "worker.tasks.run_job"
    assert message.payload[0] == [job["id"]]


@sqlite_only
def test_a_broker_that_is_down_fails_no_submission(make_settings: Callable[..., Settings]) -> None:
    app = create_app(make_settings(broker_url="redis://127.0.0.1:1/0"))
    services: Services = app.state.services
    with TestClient(app) as client:
        with services.db.begin() as session:
            _, token = create_key(session, services.secret_key, name="a", scopes=["jobs:write"])
        assert client.post("/v1/jobs", json=DIGITS, headers=bearer(token)).status_code == 202
        assert client.get("/readyz").status_code == 200


@sqlite_only
@pytest.mark.parametrize(
    ("body", "code", "field", "told"),
    [
        ({"dataset": "nope"}, "unknown-dataset", "dataset", "cifar100"),
        ({"preset": "nope"}, "invalid-config", "preset", "fashion-mnist"),
        ({"condense": {"ipc": 0}}, "invalid-config", "condense.ipc", "1 (it is 0)"),
        ({"condense": {"ipc": "ten"}}, "invalid-config", "condense.ipc", "'ten'"),
        ({"condense": {"ipcs": 3}}, "invalid-config", "condense.ipcs", "it is 3"),
        ({"condense": {"network": {"depth": 9}}}, "invalid-config", "condense.network.depth", "8 (it is 9)"),
        ({"condense": {"network": {"depth": 4}}}, "invalid-config", "condense", "8 pixels"),
        ({"condense": {"factor": 8, "ipc": 3}}, "invalid-config", "condense", "192 of each class"),
        ({"condense": {"ipc": 100, "factor": 2}}, "invalid-config", "condense", "class with 139"),
        ({"condense": {"batch_syn_max": 3}}, "invalid-config", "condense", "batch_syn_max is 3"),
        ({"evaluate": {"sizes": [6]}}, "invalid-config", "evaluate.sizes", "k is 6, but the set has 5"),
        ({"evaluate": {"repeats": 0}}, "invalid-config", "evaluate.repeats", "it is 0"),
        ({"evaluate": {"network": {"depth": 5}}}, "invalid-config", "evaluate.network", "8 pixels"),
        ({"name": "No Slug"}, "invalid-request", "name", "'No Slug'"),
        ({"name": "x" * 64}, "invalid-request", "name", "xxx"),
        ({"dataset": ""}, "invalid-request", "dataset", "it is ''"),
        ({"dataset": "a\0b"}, "invalid-request", "dataset", "a\\x00b"),
        ({"surplus": 1}, "invalid-request", "surplus", "it is 1"),
        ({"condense": 3}, "invalid-request", "condense", "it is 3"),
    ],
)
def test_an_impossible_job_is_refused_with_field_value_and_limit(
    api: Api, body: dict[str, Any], code: str, field: str, told: str
) -> None:
    merged = {**DIGITS, **body}
    if isinstance(body.get("condense"), dict):
        merged["condense"] = {"ipc": 5, **body["condense"]}
    answer = api.client.post("/v1/jobs", json=merged, headers=api.admin)
    problem = check(answer, 422, code)
    assert field in [error["field"] for error in problem["errors"]]
    assert told in problem["errors"][0]["message"]
    with api.services.db.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


def test_a_repeated_submission_is_the_same_job(api: Api) -> None:
    headers = {**api.admin, "Idempotency-Key": "one"}
    first, second = submit(api, headers), submit(api, headers)
    assert first == second
    answer = api.client.post("/v1/jobs", json={**DIGITS, "name": "other"}, headers=headers)
    check(answer, 422, "idempotency-mismatch")
    assert submit(api, {**api.admin, "Idempotency-Key": "two"})["id"] != first["id"]
    someone = {**api.key("jobs:write"), "Idempotency-Key": "one"}
    assert submit(api, someone, name="theirs")["id"] != first["id"]


def test_a_refused_submission_does_not_use_up_its_key(api: Api) -> None:
    headers = {**api.key("jobs:write"), "Idempotency-Key": "one"}
    submit(api, name="mine")
    answer = api.client.post("/v1/jobs", json={**DIGITS, "name": "mine"}, headers=headers)
    check(answer, 409, "set-name-taken")
    submit(api, headers, name="free")


def test_jobs_are_listed_page_by_page_newest_first(api: Api) -> None:
    ids = [submit(api)["id"] for _ in range(5)]
    api.client.post(f"/v1/jobs/{ids[2]}/cancel", headers=api.admin)
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = api.client.get("/v1/jobs", params=query, headers=api.admin).json()
        seen += [job["id"] for job in page["data"]]
        assert len(page["data"]) <= 2
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        query["after"] = page["next_cursor"]
    assert seen == ids[::-1]
    canceled = api.client.get("/v1/jobs?state=canceled", headers=api.admin).json()["data"]
    assert [job["id"] for job in canceled] == [ids[2]]
    for query_text, field in (
        ("limit=0", "query.limit"),
        ("state=odd", "query.state"),
        ("after=%", "query.after"),
    ):
        answer = api.client.get(f"/v1/jobs?{query_text}", headers=api.admin)
        assert check(answer, 422, "invalid-request")["errors"][0]["field"] == field


def test_other_keys_jobs_do_not_exist_except_for_admins(api: Api) -> None:
    mine, yours = api.key("jobs:read", "jobs:write"), api.key("jobs:read", "jobs:write")
    job = submit(api, mine, name="mine")
    other = submit(api, yours, name="yours")
    for answer in (
        api.client.get(f"/v1/jobs/{job['id']}", headers=yours),
        api.client.post(f"/v1/jobs/{job['id']}/cancel", headers=yours),
        api.client.get("/v1/jobs/job_unknown", headers=api.admin),
        api.client.post("/v1/jobs/job_unknown/cancel", headers=api.admin),
    ):
        check(answer, 404, "not-found")

    def ids(headers: dict[str, str], query: str = "") -> list[str]:
        page = api.client.get(f"/v1/jobs{query}", headers=headers)
        return [row["id"] for row in page.json()["data"]]

    assert ids(mine) == [job["id"]]
    assert ids(yours, f"?owner={other['owner']}") == [other["id"]]
    assert ids(api.admin) == [other["id"], job["id"]]
    assert ids(api.admin, f"?owner={job['owner']}") == [job["id"]]
    check(api.client.get(f"/v1/jobs?owner={job['owner']}", headers=yours), 403, "scope-missing")


def test_cancel_is_idempotent_and_refused_at_the_end(api: Api) -> None:
    queued = submit(api)["id"]
    for _ in range(2):
        answer = api.client.post(f"/v1/jobs/{queued}/cancel", headers=api.admin)
        assert (answer.status_code, answer.json()["state"]) == (202, "canceled")
    running = submit(api)["id"]
    with api.services.db.begin() as session:
        jobs.claim(session, running, "worker", 90)
    for _ in range(2):
        answer = api.client.post(f"/v1/jobs/{running}/cancel", headers=api.admin)
        assert (answer.status_code, answer.json()["state"]) == (202, "canceling")
    with api.services.db.begin() as session:
        jobs.fail(session, running, 1, "bad-dataset", "class 3 is empty")
    check(api.client.post(f"/v1/jobs/{running}/cancel", headers=api.admin), 409, "job-ended")
    failed = api.client.get(f"/v1/jobs/{running}", headers=api.admin)
    assert failed.status_code == 200
    assert failed.json()["error"] == {"code": "bad-dataset", "detail": "class 3 is empty"}


def test_a_job_shows_its_progress_and_its_set(api: Api) -> None:
    job_id = submit(api)["id"]

    def shown() -> dict[str, Any]:
        body: dict[str, Any] = api.client.get(f"/v1/jobs/{job_id}", headers=api.admin).json()
        return body

    with api.services.db.begin() as session:
        jobs.claim(session, job_id, "worker", 90)
    assert shown()["progress"]["phase"] == "loading"
    reported = {"phase": "condensing", "step": 3, "total": 200, "eta_s": 9.5, "loss": 0.5, "mls": [1, 2]}
    with api.services.db.begin() as session:
        jobs.report(session, job_id, 1, reported)
    assert shown()["progress"] == reported
    assert shown()["state"] == JobState.RUNNING
    with api.services.db.begin() as session:
        sets.publish(
            session,
            job_id,
            1,
            object_key="a",
            object_bytes=1,
            master_key="b",
            build_manifest=lambda name, version: {},
        )
    assert shown()["set"] == {"name": "digits-ipc5", "version": 1, "url": "/v1/sets/digits-ipc5@1"}
    assert shown()["links"]["set"] == "/v1/sets/digits-ipc5@1"


def test_a_job_asks_for_its_longest_time_within_the_operators(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submitted(**more: int) -> Any:
        return api.client.post("/v1/jobs", json={"dataset": "digits", **more}, headers=api.admin)

    assert submitted().json()["max_runtime_s"] is None
    assert submitted(max_runtime_s=60).json()["max_runtime_s"] == 60
    assert submitted(max_runtime_s=0).status_code == 422
    limited = api.services.settings.model_copy(update={"max_runtime_seconds": 100})
    monkeypatch.setattr(api.client.app.state, "services", replace(api.services, settings=limited))  # type: ignore[attr-defined]
    assert submitted().json()["max_runtime_s"] == 100
    assert submitted(max_runtime_s=100).json()["max_runtime_s"] == 100
    refused = submitted(max_runtime_s=101)
    assert refused.status_code == 422
    assert "at most 100 s here (it is 101)" in refused.json()["detail"]
