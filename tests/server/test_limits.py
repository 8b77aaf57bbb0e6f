"""Rates and quotas: what is too much is refused with 429 and a time, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import redis
from pydantic import ValidationError
from sqlalchemy import func, select

from server.access.quotas import check_jobs, check_upload
from server.access.ratelimit import RateLimits
from server.settings import Settings
from server.store import datasets, jobs, keys, sets
from server.store.db import Database
from server.store.tables import Job
from server.web.problems import Problem
from tests.server.archives import arrays
from tests.server.conftest import bearer, serving, sqlite_only
from tests.server.test_api_jobs import DIGITS
from tests.server.test_problems import check
from tests.server.toyset import publish
from tests.services import free_port, missing


def refused(answer: Any, code: str) -> int:
    """The seconds that a client is asked to wait."""
    check(answer, 429, code)
    seconds = int(answer.headers["Retry-After"])
    assert seconds > 0
    return seconds


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A Redis database; the keys that the test made are deleted."""
    url = os.environ.get("MDC_TEST_REDIS_URL", "redis://127.0.0.1:6379/11")
    client = redis.Redis.from_url(url)
    try:
        client.ping()
    except redis.ConnectionError as error:
        missing("Redis", error)
    yield url
    for key in client.scan_iter("mdc-rates:*"):
        client.delete(key)
    client.close()


@sqlite_only
def test_a_key_that_is_used_too_often_waits_and_others_do_not(make_settings: Callable[..., Settings]) -> None:
    with serving(make_settings(key_rate="5/hour")) as api:
        mine, yours = api.key("jobs:read"), api.key("jobs:read")
        answers = [api.client.get("/v1/jobs", headers=mine) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert refused(answers[-1], "rate-limited") <= 3600
        assert api.client.get("/v1/jobs", headers=yours).status_code == 200


@sqlite_only
def test_devices_that_share_a_key_are_not_counted(make_settings: Callable[..., Settings]) -> None:
    with serving(make_settings(key_rate="5/hour")) as api:
        publish(api.services, api.admin["Authorization"].split("_")[1], "toy", 1)
        device = api.key("subsets:read")
        for url in ("/subsets/2?set=toy", "/subsets/2?set=toy@1", "/v1/sets", "/v1/sets/toy/manifest"):
            assert {api.client.get(url, headers=device).status_code for _ in range(6)} == {200}


@sqlite_only
def test_an_address_that_guesses_keeps_out_no_key_that_works(
    make_settings: Callable[..., Settings],
) -> None:
    with serving(make_settings(refusal_rate="3/hour")) as api:
        reader, fresh = api.key("jobs:read"), api.key("jobs:read")
        assert api.client.get("/v1/jobs", headers=reader).status_code == 200
        assert api.client.get("/v1/jobs").status_code == 401  # no key is no guess
        guesses = [api.client.get("/v1/jobs", headers=bearer(f"mdc_guess_{n}")) for n in range(4)]
        assert [answer.status_code for answer in guesses] == [401] * 3 + [429]
        assert refused(guesses[-1], "rate-limited") <= 3600
        assert api.client.get("/v1/jobs", headers=reader).status_code == 200
        assert api.client.get("/v1/jobs", headers=fresh).status_code == 200, "not met before, and it works"
        assert api.client.get("/subsets/1?set=none", headers=api.key("subsets:read")).status_code == 404


@sqlite_only
@pytest.mark.parametrize("url", ["/v1/jobs", "/v1/sets/toy@1/subsets/1"])
@pytest.mark.parametrize("different", [True, False])
def test_guesses_that_come_together_are_limited_all_the_same(
    make_settings: Callable[..., Settings], url: str, different: bool
) -> None:
    with serving(make_settings(refusal_rate="3/hour")) as api:
        publish(api.services, api.admin["Authorization"].split("_")[1], "toy", 1)
        guesses = [bearer(f"mdc_guess_{number if different else 0}") for number in range(64)]
        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(lambda guess: api.client.get(url, headers=guess), guesses))
        assert Counter(answer.status_code for answer in answers) == {401: 3, 429: 61}


def test_processes_count_together_in_redis(redis_url: str) -> None:
    key = secrets.token_hex(8)

    async def count() -> None:
        one, other = (RateLimits("3/hour", "", redis_url) for _ in range(2))
        try:
            for limits in (one, other, one):
                await limits.use(key)
            with pytest.raises(Problem, match="3 per 1 hour") as refusal:
                await other.use(key)
            assert 0 < int((refusal.value.headers or {})["Retry-After"]) <= 3600
            await other.use(key + "other")
        finally:
            await one.close()
            await other.close()

    asyncio.run(count())


@sqlite_only
def test_without_its_redis_nothing_is_refused_and_nobody_waits_twice(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(
        key_rate="1/hour", refusal_rate="1/hour", broker_url=f"redis://127.0.0.1:{free_port()}/0"
    )
    with serving(settings) as api:
        for _ in range(3):
            assert api.client.get("/v1/jobs", headers=api.admin).status_code == 200
            assert api.client.get("/v1/jobs", headers=bearer("mdc_a_b")).status_code == 401
        assert api.client.post("/v1/jobs", json=DIGITS, headers=api.admin).status_code == 202
        assert api.client.get("/readyz").status_code == 200


def test_a_key_has_only_so_many_jobs(make_settings: Callable[..., Settings]) -> None:
    with serving(make_settings(key_jobs=2)) as api:
        writer, other = api.key("jobs:read", "jobs:write"), api.key("jobs:write")
        headers = [{**writer, "Idempotency-Key": str(number)} for number in range(3)]
        body = {**DIGITS, "name": "mine"}
        answers = [api.client.post("/v1/jobs", json=body, headers=one) for one in headers]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        refused(answers[-1], "too-many-jobs")
        # What was accepted is still answered, and what was refused has not used up its idempotency key.
        assert api.client.post("/v1/jobs", json=body, headers=headers[0]).json() == answers[0].json()
        theirs = api.client.post("/v1/jobs", json={**DIGITS, "name": "theirs"}, headers=other)
        assert theirs.status_code == 202
        api.client.post(f"/v1/jobs/{answers[0].json()['id']}/cancel", headers=writer)
        assert api.client.post("/v1/jobs", json=body, headers=headers[2]).status_code == 202


def test_concurrent_submissions_do_not_pass_the_quota_together(db: Database, owner: str) -> None:
    with db.begin() as session:
        sets.claim_name(session, "toy", owner)
    together = threading.Barrier(8)
    outcomes: list[int] = []

    def submit() -> None:
        together.wait()
        try:
            with db.begin() as session:
                check_jobs(session, owner, 3)
                jobs.submit(session, owner_id=owner, dataset="digits", name="toy", condense={}, evaluate={})
            outcomes.append(202)
        except Problem as problem:
            outcomes.append(problem.status_code)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [202] * 3 + [429] * 5
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 3


def test_counting_uploads_does_not_wait_for_those_who_use_the_key(db: Database, owner: str) -> None:
    with db.begin() as session:
        check_upload(session, owner, 10, 10)
        with pytest.raises(Problem, match="11 bytes, and 0 of the 10"):
            check_upload(session, owner, 11, 10)
        assert keys.get(session, owner) is not None


def test_a_key_has_only_so_many_bytes(make_settings: Callable[..., Settings]) -> None:
    first, second = arrays(), arrays(y_train=np.array([1, 1, 1, 0, 0, 0]))
    with serving(make_settings(key_upload_bytes=len(first) + len(second) - 1)) as api:
        media = {"Content-Type": "application/x-npz"}

        def upload(content: bytes, key: dict[str, str]) -> Any:
            return api.client.post("/v1/datasets", content=content, headers={**key, **media})

        assert upload(first, api.admin).status_code == 201
        problem = check(upload(second, api.admin), 413, "upload-quota")
        assert f"{len(second)} bytes, and {len(first)} of the" in problem["detail"]
        assert upload(first, api.admin).status_code == 200
        assert upload(second, api.key("jobs:write")).status_code == 201
        with api.services.db.read() as session:
            owner = api.admin["Authorization"].split("_")[1]
            assert datasets.stored_bytes(session, owner) == len(first)


@pytest.mark.parametrize("rate", ["often", "5", "5/fortnight", "-1/hour"])
def test_a_rate_that_is_none_is_named(rate: str) -> None:
    with pytest.raises(ValidationError, match=f"'{rate}' is not a rate"):
        Settings(key_rate=rate)
