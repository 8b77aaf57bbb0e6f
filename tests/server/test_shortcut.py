"""What is answered before the router is what the routes answer."""

from __future__ import annotations

from typing import Any

import pytest

from mdc_core import rankmajor
from server import shortcut
from server.store import sets
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
    ("/v1/sets/toy@9/subsets/1", {}),
    ("/v1/sets/toy@1/subsets/1", {"If-Match": '"0"'}),
    ("/v1/sets/toy@1/subsets/1", {"If-None-Match": "*"}),
    ("/v1/sets/toy@1/subsets/1", {"Authorization": "Basic x"}),
    ("/v1/sets/toy@1/subsets/1", {"Authorization": ""}),
]


@pytest.fixture
def quick(toy: Published, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request took the quick way; everything is in memory."""
    for version in (1, 2):
        toy.get(f"/v1/sets/toy@{version}/subsets/4")
    taken: list[bool] = []
    original = shortcut._from_memory

    def watched(scope: Any) -> Any:
        response = original(scope)
        taken.append(response is not None)
        return response

    monkeypatch.setattr(shortcut, "_from_memory", watched)
    return taken


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
    monkeypatch.setattr(shortcut, "_from_memory", lambda scope: None)
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
        # Knowing an admin's key begins with its first use.
        assert quick == [False, status == 200]
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
