"""A withdrawn version is delivered no more; only its owner and admins withdraw."""

from __future__ import annotations

from typing import Any

from tests.server.conftest import Published
from tests.server.test_problems import check
from tests.server.toyset import publish

PARTS = ("", "/manifest", "/subsets/1", "/ranks/1", "/preview.png")


def delete(toy: Published, reference: str, headers: dict[str, str]) -> Any:
    return toy.api.client.delete(f"/v1/sets/{reference}", headers=headers)


def test_after_it_every_part_is_answered_with_404(toy: Published) -> None:
    for part in PARTS:  # all of it is in memory now
        assert toy.get(f"/v1/sets/toy@2{part}").status_code == 200
    assert delete(toy, "toy@2", toy.api.admin).status_code == 204
    for part in PARTS:
        check(toy.get(f"/v1/sets/toy@2{part}"), 404, "withdrawn")
        assert toy.get(f"/v1/sets/toy@1{part}").status_code == 200
    assert toy.get("/v1/sets/toy").json()["version"] == 1
    assert [row["version"] for row in toy.get("/v1/sets").json()["data"]] == [1]
    assert delete(toy, "toy@2", toy.api.admin).status_code == 204
    publish(toy.api.services, toy.owner, "toy", 3)
    assert toy.get("/v1/sets/toy").json()["version"] == 3
    check(toy.get("/v1/sets/toy@2"), 404, "withdrawn")


def test_when_all_versions_are_withdrawn_so_is_the_name(toy: Published) -> None:
    for version in (1, 2):
        delete(toy, f"toy@{version}", toy.api.admin)
    check(toy.get("/subsets/1?set=toy"), 404, "withdrawn")
    assert toy.get("/v1/sets").json()["data"] == []


def test_it_takes_the_owner_or_an_admin(toy: Published) -> None:
    other = toy.api.key("jobs:write", "subsets:read")
    check(delete(toy, "toy@1", other), 403, "not-owner")
    check(delete(toy, "toy@1", toy.reader), 403, "scope-missing")
    publish(toy.api.services, other["Authorization"].split("_")[1], "theirs", 4)
    assert delete(toy, "theirs@1", other).status_code == 204
    check(toy.get("/v1/sets/theirs@1"), 404, "withdrawn")
    assert toy.get("/v1/sets/toy@1").status_code == 200


def test_it_takes_a_version_that_exists(toy: Published) -> None:
    check(delete(toy, "toy", toy.api.admin), 422, "invalid-request")
    for unknown in ("toy@3", "none@1", "Toy@1"):
        check(delete(toy, unknown, toy.api.admin), 404, "not-found")
