"""The numbers at /metrics are those of what has happened, and all of them are documented."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, update

from server.app import create_app
from server.settings import Settings
from server.store import jobs
from server.store.tables import Job, utcnow
from tests.server.archives import arrays
from tests.server.conftest import Api, Published, TestClient, sqlite_only
from tests.server.test_api_jobs import submit

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: TestClient) -> Numbers:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(numbers: Numbers, name: str, **labels: str) -> float:
    return numbers.get((name, frozenset(labels.items())), 0.0)


def test_requests_are_counted_by_template_and_status(api: Api) -> None:
    first, second = submit(api)["id"], submit(api)["id"]
    for path in (f"/v1/jobs/{first}", f"/v1/jobs/{second}", "/v1/jobs/none", "/v1/nothing"):
        api.client.get(path, headers=api.admin)
    content = arrays()
    upload = {**api.admin, "Content-Type": "application/x-npz"}
    assert api.client.post("/v1/datasets", content=content, headers=upload).status_code == 201
    numbers = scrape(api.client)
    route = "/v1/jobs/{job_id}"
    assert value(numbers, "mdc_requests_total", method="GET", route=route, status="200") == 2
    assert value(numbers, "mdc_requests_total", method="GET", route=route, status="404") == 1
    assert value(numbers, "mdc_requests_total", method="GET", route="none", status="404") == 1
    assert value(numbers, "mdc_requests_total", method="POST", route="/v1/jobs", status="202") == 2
    assert value(numbers, "mdc_request_seconds_count", method="GET", route=route) == 3
    assert value(numbers, "mdc_uploaded_bytes_total") == len(content)
    assert value(numbers, "process_resident_memory_bytes") > 0


@sqlite_only
def test_methods_that_nobody_knows_are_one_series(api: Api) -> None:
    for number in range(3):
        assert api.client.request(f"ODD{number}", "/v1/jobs").status_code == 405
    series = [
        line for line in api.client.get("/metrics").text.splitlines() if line.startswith("mdc_requests_total")
    ]
    assert [line.split('"')[1] for line in series if "405" in line] == ["other"]


@sqlite_only
def test_a_crash_counts_as_500(make_settings: Callable[..., Settings]) -> None:
    app = create_app(make_settings())

    @app.get("/crash")
    def crash() -> None:
        raise RuntimeError

    with TestClient(app, raise_server_exceptions=False) as client:
        client.get("/crash")
        assert value(scrape(client), "mdc_requests_total", method="GET", route="/crash", status="500") == 1


def test_delivered_bytes_are_counted_from_memory_or_not(toy: Published) -> None:
    bodies = [toy.get("/v1/sets/toy@2/subsets/3").content for _ in range(3)]
    bodies.append(toy.get("/v1/sets/toy@2/subsets/3", Range="bytes=0-9").content)
    numbers = scrape(toy.api.client)
    cold = value(numbers, "mdc_sent_bytes_total", route="/v1/sets/{name}/subsets/{k}")
    warm = value(numbers, "mdc_memory_sent_bytes_total")
    assert (cold, warm) == (len(bodies[0]), 2 * len(bodies[0]) + 10)
    assert value(numbers, "mdc_memory_answers_total") == 3


def test_the_queue_is_counted_by_one_query(api: Api) -> None:
    waiting, running, vanished, canceled = (submit(api)["id"] for _ in range(4))
    past = utcnow() - timedelta(seconds=100)
    with api.services.db.begin() as session:
        for job_id in (running, vanished):
            jobs.claim(session, job_id, "worker", 90)
        session.execute(update(Job).where(Job.id == waiting).values(created_at=past))
        session.execute(update(Job).where(Job.id == vanished).values(lease_expires_at=past, interruptions=2))
        jobs.cancel(session, canceled)
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    event.listen(api.services.db.engine, "before_cursor_execute", record)
    numbers = scrape(api.client)
    assert len(statements) == 1
    counted = {state: value(numbers, "mdc_jobs", state=state) for state in ("queued", "running", "canceling")}
    assert counted == {"queued": 1, "running": 2, "canceling": 0}
    assert ("mdc_jobs", frozenset({("state", "canceled")})) not in numbers
    assert 100 <= value(numbers, "mdc_oldest_queued_seconds") < 200
    assert value(numbers, "mdc_expired_leases") == 1
    assert value(numbers, "mdc_interruptions") == 2
    assert value(numbers, "mdc_database_up") == 1


@sqlite_only
def test_without_a_database_the_rest_is_still_told(make_settings: Callable[..., Settings]) -> None:
    unreachable = make_settings(database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")
    numbers = scrape(TestClient(create_app(unreachable)))
    assert numbers["mdc_database_up", frozenset()] == 0
    assert not any(name == "mdc_jobs" for name, _ in numbers)


@sqlite_only
def test_every_metric_is_documented_and_none_else(api: Api) -> None:
    submit(api)
    page = (Path(__file__).resolve().parents[2] / "docs/reference/metrics.md").read_text()
    told = {
        name
        for row in re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    families = text_string_to_metric_families(api.client.get("/metrics").text)
    found = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert found == told
