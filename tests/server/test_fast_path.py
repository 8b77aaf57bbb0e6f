"""What is answered before the router is what the routes answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from mdc_core.delivery import rankmajor
from server.caching.revalidating import TRUST_SECONDS
from server.delivery.fast_path import FastPath
from server.store import keys, sets
from server.web.conditional import Decision
from tests.server.conftest import Published, sqlite_only
from tests.server.test_problems import check
from tests.server.toyset import INFO

pytestmark = sqlite_only
H, B = rankmajor.header_size(INFO), INFO.rank_bytes
QUICK: list[tuple[str, dict[str, str]]] = [
    *[(f"/v1/sets/toy@1/subsets/{k}", {}) for k in (1, 2, 3, 4)],
    *[(f"/v1/sets/toy@2/ranks/{r}", {}) for r in (1, 4)],
    ("/subsets/3?set=toy@1", {}),
    ("/subsets/3?set=toy%401", {}),
    ("/v1/sets/toy@1/subsets/3", {"Range": f"bytes={H}-{H + B - 1}"}),
    ("/v1/sets/toy@1/subsets/3", {"Range": "bytes=-1"}),
    ("/v1/sets/toy@1/subsets/3", {"Range": "bytes=0-1,3-4"}),
    ("/v1/sets/toy@1/subsets/3", {"Range": "bytes=0-1", "If-Range": '"0"'}),
    ("/v1/sets/toy@1/subsets/3", {"If-None-Match": '"0"'}),
    ("/v1/sets/toy@1/subsets/3", {"Range": f"bytes=0-{'9' * 4000}"}),
    ("/v1/sets/toy@1/subsets/3", {"Range": f"bytes=-{'9' * 4000}"}),
    ("/v1/sets/toy@1/subsets/3", {"Range": f"bytes={'0' * 4000}-"}),
    ("/v1/sets/toy@1/subsets/3", {"Range": f"bytes=9-{'0' * 4000}"}),
    ("/v1/sets/toy@1/subsets/3", {"If-Match": "*"}),
    ("/v1/sets/toy@1/ranks/2", {"Range": "bytes=0-1"}),
]
ORDINARY: list[tuple[str, dict[str, str]]] = [
    ("/v1/sets/toy/subsets/1", {}),
    ("/subsets/1?set=toy", {}),
    ("/subsets/1", {}),
    ("/subsets/1?set=toy@1&set=toy@2", {}),
    ("/subsets/4?set=toy@1&storage_bytes=5000", {}),
    ("/v1/sets/toy@1/subsets/4?storage_bytes=5000", {}),
    ("/v1/sets/toy@1/subsets/auto", {}),
    ("/v1/sets/toy@1/subsets/5", {}),
    ("/v1/sets/toy@1/ranks/0", {}),
    ("/v1/sets/toy@1/subsets/01", {"Range": "bytes=999999-"}),
    ("/v1/sets/toy@01/subsets/1", {}),
    ("/v1/sets/toy@1/subsets/1", {"Range": f"bytes={'9' * 4000}-"}),
    ("/v1/sets/toy@1/subsets/1", {"Range": f"bytes=0-{'9' * 5000}"}),
    ("/v1/sets/toy@1/subsets/1", {"If-None-Match": '"0"' * 2000}),
    ("/v1/sets/toy@1/subsets/1", {"X-Odd": "x" * 2**15}),
    ("/v1/sets/toy@1/subsets/1?" + "&" * 5000, {}),
    ("/v1/sets/toy@9/subsets/1", {}),
    ("/v1/sets/toy@1/subsets/1", {"If-Match": '"0"'}),
    ("/v1/sets/toy@1/subsets/1", {"If-None-Match": "*"}),
    ("/v1/sets/toy@1/subsets/1", {"Authorization": "Basic x"}),
    ("/v1/sets/toy@1/subsets/1", {"Authorization": ""}),
    ("/v1/sets/toy@1/subsets/1", {"Origin": "https://example.org"}),
]


@pytest.fixture
def quick(toy: Published, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request took the fast path; everything is in memory."""
    for version in (1, 2):
        toy.get(f"/v1/sets/toy@{version}/subsets/4")
    taken: list[bool] = []
    original = FastPath.answer

    async def watched(self: FastPath, scope: Any, send: Any) -> bool:
        answered = await original(self, scope, send)
        taken.append(answered)
        return answered

    monkeypatch.setattr(FastPath, "answer", watched)
    return taken


@pytest.fixture
def clock(toy: Published, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time for trust in keys and versions."""
    now = [time.monotonic()]
    services: Any = toy.api.services
    for trusted in (services.catalog._trusted, services.authenticator.known_keys._trusted):
        monkeypatch.setattr(trusted, "_clock", lambda: now[0])
    return now


@pytest.fixture
def questions(toy: Published) -> list[str]:
    """What the database is asked."""
    asked: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            asked.append(statement)

    event.listen(toy.api.services.db.engine, "before_cursor_execute", record)
    return asked


def shown(answer: Any) -> tuple[Any, ...]:
    headers = {name: value for name, value in answer.headers.items() if name != "x-request-id"}
    return answer.status_code, headers, answer.content if answer.status_code < 400 else None


def test_both_ways_answer_the_same(
    toy: Published, quick: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [*QUICK, *ORDINARY]
    answers = [toy.api.client.get(url, headers={**toy.reader, **given}) for url, given in requests]
    assert quick == [True] * len(QUICK) + [False] * len(ORDINARY)
    assert all(answer.headers["X-Request-ID"] for answer in answers)

    async def never(*_: Any) -> bool:
        return False

    monkeypatch.setattr(FastPath, "answer", never)
    for (url, given), answer in zip(requests, answers, strict=True):
        ordinary = toy.api.client.get(url, headers={**toy.reader, **given})
        assert shown(answer) == shown(ordinary), (url, given)


def test_it_is_for_readers_only(toy: Published, quick: list[bool]) -> None:
    url = "/v1/sets/toy@1/subsets/1"
    for scope, status in (("jobs:read", 403), ("admin", 200)):
        headers = toy.api.key(scope)
        quick.clear()
        for _ in range(2):
            assert toy.api.client.get(url, headers=headers).status_code == status
        assert quick == [status == 200] * 2
    quick.clear()
    assert toy.get(url, "HEAD").content == b""
    assert toy.api.client.get(url).status_code == 401
    assert not any(quick)


def test_a_withdrawn_version_takes_it_no_more(toy: Published, quick: list[bool]) -> None:
    url = "/v1/sets/toy@1/subsets/1"
    assert toy.get(url).status_code == 200
    with toy.api.services.db.begin() as session:
        sets.withdraw(session, "toy", 1)
    toy.api.services.catalog.forget("toy", 1)
    check(toy.get(url), 404, "withdrawn")
    assert quick == [True, False]


def test_it_asks_again_before_trust_ends(
    toy: Published, quick: list[bool], clock: list[float], questions: list[str]
) -> None:
    """Key and version are confirmed in the background; a revocation is seen."""
    url = "/v1/sets/toy@1/subsets/1"

    def get_later() -> int:
        clock[0] += 0.6 * TRUST_SECONDS
        status: int = toy.get(url).status_code
        deadline = time.monotonic() + 30
        while toy.api.services.fast_path._asking and time.monotonic() < deadline:
            time.sleep(0.01)
        return status

    questions.clear()
    assert [get_later() for _ in range(3)] == [200] * 3
    assert quick == [True] * 3
    assert len(questions) == 2 * 3  # the key and the version, each time
    with toy.api.services.db.begin() as session:
        keys.revoke(session, toy.reader["Authorization"].split("_")[1])
    assert get_later() == 200
    check(toy.get(url), 401, "unauthenticated")


def test_requests_that_come_together_ask_once(
    toy: Published, quick: list[bool], clock: list[float], questions: list[str]
) -> None:
    def asked(count: int) -> int:
        """Questions that so many requests ask at once when trust has ended."""
        clock[0] += TRUST_SECONDS
        questions.clear()
        with ThreadPoolExecutor(count) as pool:
            answers = [pool.submit(toy.get, "/v1/sets/toy@1/subsets/1") for _ in range(count)]
            assert [answer.result().status_code for answer in answers] == [200] * count
        return len(questions)

    assert asked(8) == asked(1) > 0
    assert all(quick)


def test_requests_that_come_together_with_a_new_key_ask_once(
    toy: Published, quick: list[bool], questions: list[str]
) -> None:
    devices = [toy.api.key("subsets:read") for _ in range(2)]
    quick.clear()

    def asked(count: int) -> int:
        """Questions that so many requests ask at once with a key that was never seen here."""
        device = devices.pop()
        questions.clear()
        with ThreadPoolExecutor(count) as pool:
            url = "/v1/sets/toy@1/subsets/1"
            answers = [pool.submit(toy.api.client.get, url, headers=device) for _ in range(count)]
            assert [answer.result().status_code for answer in answers] == [200] * count
        return len(questions)

    assert asked(64) == asked(1) == 1
    assert all(quick)


def test_what_is_kept_holds_no_text_of_a_caller(toy: Published, quick: list[bool]) -> None:
    """Any number of different conditions that come to the same are one answer; and all are bounded by bytes."""
    for number in range(300):
        tag = f'"{number:04}{"x" * 4000}"'
        ranges = {"Range": f"bytes=0-{'9' * (20 + number)}"}
        for given in ({"If-None-Match": tag}, {**ranges, "If-Range": tag}, ranges):
            assert toy.get("/v1/sets/toy@1/subsets/1", **given).status_code in (200, 206)
    kept: Any = toy.api.services.fast_path._ready
    assert len(quick) == 900
    assert all(quick)
    url = "/v1/sets/toy@1/subsets/1"
    assert [key for key in kept._values if key[1] == url] == [
        ("toy@1", url, Decision(200)),
        ("toy@1", url, Decision(206, (0, H + B))),
    ]


def test_answers_that_are_kept_are_bounded_by_bytes(
    toy: Published, quick: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: Any = toy.api.services.fast_path._ready
    monkeypatch.setattr(kept, "_capacity", 20_000)
    for first in range(200):
        assert toy.get("/v1/sets/toy@1/subsets/1", Range=f"bytes={first}-").status_code == 206
    assert 5_000 < kept.weight <= 20_000


def test_a_fault_of_the_quick_way_is_not_seen(
    toy: Published, quick: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("server.delivery.fast_path._decision", broken)
    assert toy.get("/v1/sets/toy@1/subsets/1").status_code == 200
    assert quick == [False]
