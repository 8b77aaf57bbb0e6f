"""A redirect leads to the very bytes that the API would send."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from mdc_core.delivery import rankmajor
from server.delivery.fast_path import FastPath
from server.delivery.rank_cache import RankCache
from server.store.objects import FolderObjects
from server.web.conditional import byte_range
from tests.server.conftest import Published, sqlite_only
from tests.server.test_problems import check
from tests.server.toyset import INFO, MIXED, RANDOM, publish

pytestmark = sqlite_only


class SignedFolder(FolderObjects):
    """A folder with URLs, as remote stores have them."""

    def url(self, key: str, seconds: int) -> str | None:
        return f"https://store.test/{key}?seconds={seconds}"


@pytest.fixture
def redirecting(toy: Published) -> Published:
    services = toy.api.services
    objects = SignedFolder(Path(services.settings.objects_url.removeprefix("file://")))
    settings = services.settings.model_copy(update={"downloads": "redirect"})
    ranks = RankCache(objects, settings.cache_bytes)
    fast_path = FastPath(services.authenticator, services.catalog, ranks, redirects=True, shared=False)
    toy.api.client.app.state.services = replace(  # type: ignore[attr-defined]
        services, settings=settings, objects=objects, ranks=ranks, fast_path=fast_path
    )
    toy.api.client.follow_redirects = False
    return toy


def test_the_store_has_the_same_bytes_for_the_same_range(redirecting: Published) -> None:
    stored = redirecting.objects[0]
    head, size = rankmajor.header_size(INFO), INFO.rank_bytes
    texts: list[str | None] = [None, "bytes=-7", f"bytes={head}-", f"bytes={head}-999999", f"bytes=-{size}"]
    texts += [
        f"bytes={first}-{last}"
        for first, last in product((0, head - 1, head, head + 5, head + size), (head, head + 9, head + size))
    ]
    redirects = 0
    for k, text in product((1, 2, 3, 4), texts):
        whole = rankmajor.subset(stored, INFO, k)
        headers = {} if text is None else {"Range": text}
        answer = redirecting.get(f"/v1/sets/toy@1/subsets/{k}", **headers)
        if answer.status_code == 416:
            continue
        start, end = byte_range(text, None, "", len(whole)) or (0, len(whole))
        if answer.status_code == 302:
            redirects += 1
            assert answer.headers["Location"].endswith("?seconds=300")
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Content-Location"] == f"/v1/sets/toy@1/subsets/{k}"
            first, last = byte_range(text, None, "", len(stored)) or (0, len(stored))
            assert stored[first:last] == whole[start:end]
        else:
            assert answer.content == whole[start:end]
    assert redirects > 20


def test_growing_is_redirected_and_headers_are_not(redirecting: Published) -> None:
    first, end = rankmajor.subset_size(INFO, 1), rankmajor.subset_size(INFO, 3)
    url = "/v1/sets/toy@1/subsets/3"
    assert redirecting.get(url, Range=f"bytes={first}-{end - 1}").status_code == 302
    assert redirecting.get(url).status_code == 200
    assert redirecting.get(url, Range="bytes=0-99").status_code == 206
    assert redirecting.get("/v1/sets/toy@1/subsets/4").status_code == 302
    assert redirecting.get("/v1/sets/toy@1/subsets/4", "HEAD").status_code == 200
    assert redirecting.get("/v1/sets/toy@1/ranks/1").status_code == 200


def test_a_redirect_names_the_verdict_on_a_chosen_k(redirecting: Published) -> None:
    services = redirecting.api.client.app.state.services  # type: ignore[attr-defined]
    publish(services, redirecting.owner, "mixed", 3, MIXED)
    answer = redirecting.get("/subsets/4?set=mixed@1&storage_bytes=9999")
    assert (answer.status_code, answer.headers["MDC-Verdict"]) == (302, RANDOM)


def test_conditions_that_the_store_cannot_judge_are_answered_here(redirecting: Published) -> None:
    url = "/v1/sets/toy@1/subsets/4"
    etag = redirecting.get(url, "HEAD").headers["ETag"]
    assert redirecting.get(url, If_None_Match=etag).status_code == 304
    assert redirecting.get(url, If_Match=etag).status_code == 200
    assert redirecting.get(url, If_Range=etag, Range="bytes=4096-4097").status_code == 206
    check(redirecting.get(url, If_Match='"0"'), 412, "precondition-failed")
