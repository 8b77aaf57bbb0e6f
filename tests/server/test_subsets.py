"""Delivery of a real packed set over HTTP."""

from __future__ import annotations

import base64
import hashlib
import io
from itertools import product

from PIL import Image

from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget, plan
from mdc_core.delivery.manifest import parse_manifest
from tests.server.conftest import Published
from tests.server.test_problems import check
from tests.server.toyset import ACCURACY, INFO, RANDOM, publish


def test_every_subset_is_the_file_that_the_format_says(toy: Published) -> None:
    stored = {"toy": toy.objects[1], "toy@2": toy.objects[1], "toy@1": toy.objects[0]}
    for k, reference in product((1, 2, 3, 4), stored):
        expected = rankmajor.subset(stored[reference], INFO, k)
        digest = hashlib.sha256(expected).digest()
        for url in (f"/subsets/{k}?set={reference}", f"/v1/sets/{reference}/subsets/{k}"):
            answer = toy.get(url)
            assert answer.status_code == 200
            assert answer.content == expected
            assert answer.headers["ETag"] == f'"{digest.hex()}"'
            assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
            assert answer.headers["Content-Length"] == str(len(expected))
            assert answer.headers["Accept-Ranges"] == "bytes"
            assert "Content-Encoding" not in answer.headers
            control = answer.headers["Cache-Control"].split(", ")
            assert {"private", "no-transform"} <= set(control)
            assert ("immutable" in control) == ("@" in reference)
            assert ("max-age=31536000" in control) == ("@" in reference)
            version = reference.partition("@")[2] or "2"
            assert answer.headers["Content-Location"] == f"/v1/sets/toy@{version}/subsets/{k}"
            head = toy.get(url, "HEAD")
            assert (head.status_code, head.content) == (200, b"")
            for name in ("ETag", "Content-Length", "Content-Type", "Repr-Digest", "Cache-Control"):
                assert head.headers[name] == answer.headers[name]


def test_ranges_across_header_and_payload(toy: Published) -> None:
    whole = rankmajor.subset(toy.objects[1], INFO, 3)
    size, end = rankmajor.header_size(INFO), len(whole)
    parts = [
        (f"bytes={first}-{last}", first, last + 1)
        for first, last in [
            (0, 0),
            (0, size - 1),
            (10, size + 10),
            (size - 1, size),
            (size, end - 1),
            (size + 5, size + 9),
            (end - 1, end - 1),
        ]
    ]
    parts += [("bytes=-7", end - 7, end), (f"bytes={size + 1}-", size + 1, end), ("bytes=3-999999", 3, end)]
    for text, first, stop in parts:
        answer = toy.get("/subsets/3?set=toy", Range=text)
        assert answer.status_code == 206
        assert answer.content == whole[first:stop]
        assert answer.headers["Content-Range"] == f"bytes {first}-{stop - 1}/{end}"
        assert answer.headers["Content-Length"] == str(stop - first)
        assert answer.headers["Repr-Digest"] == toy.get("/subsets/3?set=toy", "HEAD").headers["Repr-Digest"]
    assert toy.get("/subsets/3?set=toy", "HEAD", Range="bytes=0-0").status_code == 200
    several = toy.get("/subsets/3?set=toy", Range="bytes=0-1,4-5")
    assert (several.status_code, several.content) == (200, whole)
    beyond = toy.get("/subsets/3?set=toy", Range=f"bytes={end}-")
    check(beyond, 416, "range-not-satisfiable")
    assert beyond.headers["Content-Range"] == f"bytes */{end}"


def test_every_rank_alone(toy: Published) -> None:
    stored = {"toy": toy.objects[1], "toy@1": toy.objects[0]}
    for reference, r in product(stored, (1, 2, 3, 4)):
        url = f"/v1/sets/{reference}/ranks/{r}"
        expected = stored[reference][slice(*rankmajor.rank_range(INFO, r))]
        digest = base64.b64encode(hashlib.sha256(expected).digest()).decode()
        answer = toy.get(url, Range="bytes=0-0")
        assert (answer.status_code, answer.content) == (200, expected)
        assert answer.headers["ETag"] == f'"{hashlib.sha256(expected).hexdigest()}"'
        assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
        assert answer.headers["Content-Digest"] == answer.headers["Repr-Digest"]
        assert ("immutable" in answer.headers["Cache-Control"]) == ("@" in reference)
        head = toy.get(url, "HEAD")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(expected))
        fresh = toy.get(url, If_None_Match=answer.headers["ETag"])
        assert (fresh.status_code, fresh.content) == (304, b"")
        check(toy.get(url, If_Match='"0"'), 412, "precondition-failed")
    for wrong in ("0", "5", "auto", "1.0"):
        assert "1..4" in check(toy.get(f"/v1/sets/toy/ranks/{wrong}"), 404, "rank-out-of-range")["detail"]


def test_growing_is_one_range(toy: Published) -> None:
    """The bytes of subset 2, the range to subset 4, and header(4) make subset 4."""
    small = toy.get("/subsets/2?set=toy").content
    size = rankmajor.subset_size(INFO, 4)
    delta = toy.get("/subsets/4?set=toy", Range=f"bytes={len(small)}-{size - 1}").content
    grown = rankmajor.header(INFO, 4) + small[rankmajor.header_size(INFO) :] + delta
    assert grown == toy.get("/subsets/4?set=toy").content


def test_conditions(toy: Published) -> None:
    url = "/subsets/2?set=toy"
    etag = toy.get(url, "HEAD").headers["ETag"]
    other = '"0000"'
    assert toy.get(url, If_Match=etag).status_code == 200
    assert toy.get(url, If_Match="*").status_code == 200
    check(toy.get(url, If_Match=other), 412, "precondition-failed")
    check(toy.get(url, If_Match=f"W/{etag}"), 412, "precondition-failed")
    assert toy.get(url, If_None_Match=other).status_code == 200
    assert toy.get(url, If_Range=etag, Range="bytes=0-1").status_code == 206
    assert toy.get(url, If_Range=other, Range="bytes=0-1").status_code == 200
    assert toy.get(url, If_Match=other, If_None_Match=etag).status_code == 412
    # None of these needs the object; the ranks that were read before are in memory.
    for key, *_ in list(toy.api.services.objects.list("objects")):
        toy.api.services.objects.delete(key)
    for tag in (etag, f"W/{etag}", f"{other}, {etag}", "*"):
        fresh = toy.get(url, If_None_Match=tag, Range="bytes=0-1")
        assert (fresh.status_code, fresh.content) == (304, b"")
        assert fresh.headers["ETag"] == etag
        assert "Cache-Control" in fresh.headers
    assert toy.get("/subsets/4?set=toy", "HEAD").status_code == 200
    assert toy.get(url).status_code == 200
    check(toy.get("/subsets/3?set=toy"), 503, "set-unreadable")


def test_a_budget_lowers_k_as_the_plan_says(toy: Published) -> None:
    manifest = parse_manifest(toy.get("/v1/sets/toy/manifest").json())
    for wanted, ranks in product(("auto", "4", "2"), (1, 2, 3, 4)):
        storage = rankmajor.subset_size(INFO, ranks)
        at_most = None if wanted == "auto" else int(wanted)
        expected = plan(manifest, Budget(storage_bytes=storage), at_most).k
        assert expected == min(ranks, at_most or 4)
        answer = toy.get(f"/subsets/{wanted}?set=toy&storage_bytes={storage}")
        assert answer.headers["Content-Location"] == f"/v1/sets/toy@2/subsets/{expected}"
        assert answer.content == rankmajor.subset(toy.objects[1], INFO, expected)


def test_an_answer_whose_k_was_chosen_names_the_verdict(mixed: Published) -> None:
    chosen = mixed.get("/subsets/auto?set=mixed@1")
    assert (
        chosen.headers["Content-Location"] == "/v1/sets/mixed@1/subsets/4"
    )  # the most accurate all the same
    assert chosen.headers["MDC-Verdict"] == RANDOM
    lowered = mixed.get("/v1/sets/mixed@1/subsets/4?storage_bytes=9999", "HEAD")
    assert lowered.headers["MDC-Verdict"] == RANDOM
    assert chosen.headers["MDC-Epochs"] == "10"
    assert not {"MDC-Verdict", "MDC-Epochs"} & mixed.get("/subsets/4?set=mixed@1").headers.keys()
    assert "MDC-Verdict" not in mixed.get("/subsets/auto?set=toy").headers  # compared with nothing


def test_a_set_says_what_is_not_worth_its_bytes(mixed: Published) -> None:
    found = mixed.get("/v1/sets/mixed").json()
    assert [row["verdict"] for row in found["accuracy"]] == ["better", "better", RANDOM, RANDOM]
    assert f"k = 3-4 ({RANDOM})" in found["advice"]
    assert mixed.get("/v1/sets/toy").json()["advice"] is None


def test_without_a_budget_auto_is_the_best_measured(toy: Published) -> None:
    assert toy.get("/subsets/auto?set=toy", "HEAD").headers["Content-Location"].endswith("/subsets/4")


def test_a_budget_that_is_too_small_says_what_would_do(toy: Published) -> None:
    least = rankmajor.subset_size(INFO, 1)
    problem = check(toy.get(f"/subsets/auto?set=toy&storage_bytes={least - 1}"), 422, "budget-too-small")
    assert (problem["resource"], problem["needed"]) == ("storage_bytes", least)
    assert toy.get(f"/subsets/auto?set=toy&storage_bytes={least}").status_code == 200


def test_a_wrong_budget_names_the_field(toy: Published) -> None:
    for query in ("storage_bytes=many", "unknown=1", "seconds=5", "min_accuracy=2"):
        problem = check(toy.get(f"/subsets/auto?set=toy&{query}"), 422, "invalid-budget")
        assert query.partition("=")[0] in problem["detail"]


def test_there_are_only_the_subsets_1_to_n(toy: Published) -> None:
    for k in ("0", "5", "-1", "1.5", "all", "٣", "9" * 30):
        assert "1..4" in check(toy.get(f"/subsets/{k}?set=toy"), 404, "subset-out-of-range")["detail"]


def test_there_are_only_the_published_versions(toy: Published) -> None:
    for name in ("none", "toy@3", "toy@0", "toy@", "toy@x", "Toy", "toy@99999999999999999999"):
        for url in (f"/subsets/1?set={name}", f"/v1/sets/{name}", f"/v1/sets/{name}/manifest"):
            check(toy.get(url), 404, "not-found")


def test_sets_are_listed_by_name_with_their_latest_version(toy: Published) -> None:
    owner = toy.api.admin["Authorization"].split("_")[1]
    publish(toy.api.services, owner, "another", 3)
    first = toy.get("/v1/sets?limit=1").json()
    assert [(row["name"], row["version"]) for row in first["data"]] == [("another", 1)]
    second = toy.get(f"/v1/sets?limit=1&after={first['next_cursor']}").json()
    (row,) = second["data"]
    assert row == toy.get("/v1/sets/toy@2").json() == toy.get("/v1/sets/toy").json()
    assert (row["ipc"], row["classes"], row["bytes"]) == (4, ["a", "b", "c"], len(toy.objects[1]))
    assert [entry["mdc_mean"] for entry in row["accuracy"]] == list(ACCURACY)
    assert not second["has_more"]


def test_the_preview_is_a_picture(toy: Published) -> None:
    answer = toy.get("/v1/sets/toy@1/preview.png")
    assert answer.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert min(picture.size) > 3 * INFO.image_size
    assert "immutable" in answer.headers["Cache-Control"]
    assert toy.get("/v1/sets/toy/preview.png").headers["ETag"] != answer.headers["ETag"]
    fresh = toy.get("/v1/sets/toy@1/preview.png", If_None_Match=answer.headers["ETag"])
    assert (fresh.status_code, fresh.content) == (304, b"")
