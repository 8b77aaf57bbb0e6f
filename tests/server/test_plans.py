"""Plans over HTTP are those of `mdc_core.delivery.budget`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget, plan
from mdc_core.delivery.manifest import parse_manifest
from server.services import CONCURRENT_PLANS
from tests.server.conftest import Published, sqlite_only
from tests.server.test_problems import check
from tests.server.toyset import INFO, RANDOM

pytestmark = sqlite_only
THREE = rankmajor.subset_size(INFO, 3)


def ask(toy: Published, budget: object, name: str = "toy") -> Any:
    return toy.api.client.post(f"/v1/sets/{name}/plans", json=budget, headers=toy.reader)


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"storage_bytes": THREE},
        {"storage_bytes": THREE - 1, "have_k": 1},
        {"transfer_bytes": 0, "have_k": 2, "metered": True},
        {"seconds": 60, "flops": 1e9, "bandwidth_bps": 1e6, "joules": 90, "watts": 2.5},
        {"min_accuracy": 0.7, "memory_bytes": 10**9, "network": "convnet", "epochs": 10, "batch_size": 4},
        {"storage_bytes": THREE, "seconds": None},
    ],
)
def test_a_plan_is_the_one_of_the_device(toy: Published, budget: dict[str, Any]) -> None:
    answer = ask(toy, budget)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    manifest = parse_manifest(toy.get("/v1/sets/toy/manifest").json())
    expected = plan(manifest, Budget(**{key: value for key, value in budget.items() if value is not None}))
    found = answer.json()
    assert {name: found[name] for name in expected.to_dict()} == expected.to_dict()
    assert (found["name"], found["version"]) == ("toy", 2)
    assert found["sha256"] == manifest.digests.subsets[expected.k - 1]
    assert toy.get(found["url"], "HEAD").headers["ETag"] == f'"{found["sha256"]}"'


def test_a_plan_says_how_to_grow_and_what_forbids_more(toy: Published) -> None:
    found = ask(toy, {"storage_bytes": THREE, "have_k": 1}, "toy@1").json()
    assert (found["k"], found["have_k"], found["limited_by"]) == (3, 1, "storage_bytes")
    first, end = found["byte_range"]
    assert end - first == found["delta_bytes"] == 2 * INFO.rank_bytes
    delta = toy.get(found["url"], Range=f"bytes={first}-{end - 1}")
    assert (delta.status_code, delta.content) == (206, toy.objects[0][first:end])


def test_a_plan_says_what_its_size_is_worth(mixed: Published) -> None:
    assert ask(mixed, {"storage_bytes": THREE}, "mixed").json()["verdict"] == RANDOM
    assert ask(mixed, {"storage_bytes": THREE - INFO.rank_bytes}, "mixed").json()["verdict"] == "better"
    assert ask(mixed, {}, "toy").json()["verdict"] is None


def test_a_budget_that_is_too_small_says_what_would_do(toy: Published) -> None:
    problem = check(ask(toy, {"storage_bytes": 1}), 422, "budget-too-small")
    assert (problem["resource"], problem["needed"]) == (
        "storage_bytes",
        rankmajor.subset_size(INFO, 1),
    )


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"storage": 1}, "'storage'"),
        ({"storage_bytes": -1}, "storage_bytes"),
        ({"storage_bytes": [1]}, "storage_bytes"),
        ({"network": {}}, "network"),
        ({"metered": "perhaps"}, "metered"),
        ({"have_k": 5}, "have_k"),
        ({"seconds": 1}, "flops or bandwidth_bps"),
    ],
)
def test_a_wrong_budget_names_the_field(toy: Published, budget: dict[str, Any], told: str) -> None:
    assert told in check(ask(toy, budget), 422, "invalid-budget")["detail"]


@pytest.mark.parametrize("body", ["[]", "1", "", "{"])
def test_a_body_that_is_no_budget(toy: Published, body: str) -> None:
    headers = {**toy.reader, "Content-Type": "application/json"}
    answer = toy.api.client.post("/v1/sets/toy/plans", content=body, headers=headers)
    check(answer, 422, "invalid-request")


def test_there_is_no_plan_for_an_unknown_set(toy: Published) -> None:
    check(ask(toy, {}, "none"), 404, "not-found")


def test_plans_wait_for_each_other_and_nobody_for_them(
    toy: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun, most = threading.Event(), threading.Semaphore(0), [0, 0]
    lock = threading.Lock()

    def slow(*_: Any) -> Any:
        with lock:
            most[0] += 1
            most[1] = max(most)
        begun.release()
        assert go.wait(60)
        with lock:
            most[0] -= 1
        return plan(parse_manifest(toy.get("/v1/sets/toy/manifest").json()), Budget())

    monkeypatch.setattr("server.routes.subsets.make_plan", slow)
    monkeypatch.setattr("server.routes.subsets.choose_size", slow)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, toy, {}) for _ in range(4)]
        answers += [pool.submit(toy.get, "/subsets/auto?set=toy") for _ in range(4)]
        for _ in range(CONCURRENT_PLANS):
            assert begun.acquire(timeout=60)
        assert toy.api.client.get("/healthz").status_code == 200
        assert toy.get("/v1/sets/toy/subsets/1").status_code == 200
        go.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert most == [0, CONCURRENT_PLANS]
