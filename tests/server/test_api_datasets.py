"""Uploading data sets over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from mdc_core.config.presets import NAMED
from tests.server.archives import arrays, images, zipped
from tests.server.conftest import Api, sqlite_only
from tests.server.test_problems import check

pytestmark = pytest.mark.process

ZIP = {"Content-Type": "application/zip"}


def upload(api: Api, content: Any, headers: dict[str, str] | None = None, query: str = "") -> Any:
    return api.client.post(f"/v1/datasets{query}", content=content, headers={**ZIP, **(headers or api.admin)})


def temporary_files(api: Api) -> list[str]:
    folder = api.services.settings.data_dir / "uploads"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


@pytest.mark.parametrize(("content", "kind"), [(zipped(images()), "zip"), (arrays(), "npz")])
def test_an_upload_is_stored_and_a_job_can_use_it(api: Api, content: bytes, kind: str) -> None:
    answer = upload(api, content, query="?name=pets")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["name"], made["kind"], made["bytes"]) == ("pets", kind, len(content))
    assert made["sha256"] == hashlib.sha256(content).hexdigest()
    assert api.services.objects.get(f"datasets/{made['sha256']}") == content
    assert answer.headers["Location"] == f"/v1/datasets/{made['id']}"
    assert api.client.get(answer.headers["Location"], headers=api.admin).json() == made
    assert temporary_files(api) == []
    condense = {"ipc": 1, "factor": 1, "network": {"depth": 1}}
    body = {"dataset": made["id"], "condense": condense, "evaluate": {"network": {"depth": 1}}}
    job = api.client.post("/v1/jobs", json=body, headers=api.admin)
    assert job.status_code == 202, job.text
    assert (job.json()["dataset"], job.json()["name"]) == (made["id"], "pets-ipc1")
    body["condense"] = {**condense, "ipc": 4}
    problem = check(api.client.post("/v1/jobs", json=body, headers=api.admin), 422, "invalid-config")
    assert "needs (start_index + 1)·ipc·factor² = 4" in problem["detail"]


def test_the_same_bytes_are_the_same_data_set_of_an_owner(api: Api) -> None:
    content = zipped(images())
    first = upload(api, content)
    again = upload(api, content)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["name"] == f"upload-{first.json()['sha256'][:12]}"
    other = upload(api, content, api.key("jobs:write"))
    assert other.status_code == 201
    assert other.json()["id"] != first.json()["id"]


def test_uploads_are_listed_after_the_named_sets_and_only_to_their_owner(api: Api) -> None:
    mine, yours = api.key("jobs:read", "jobs:write"), api.key("jobs:read", "jobs:write")
    ids = [upload(api, zipped(images(colour=n)), mine).json()["id"] for n in range(3)]
    first = api.client.get("/v1/datasets?limit=2", headers=mine).json()
    assert [row["id"] for row in first["data"]] == [*NAMED, ids[2], ids[1]]
    second = api.client.get(
        "/v1/datasets", params={"limit": 2, "after": first["next_cursor"]}, headers=mine
    ).json()
    assert [row["id"] for row in second["data"]] == ids[:1]
    assert not second["has_more"]
    theirs = api.client.get("/v1/datasets", headers=yours).json()["data"]
    assert [row["id"] for row in theirs] == list(NAMED)
    check(api.client.get(f"/v1/datasets/{ids[0]}", headers=yours), 404, "not-found")
    body = {"dataset": ids[0], "condense": {"ipc": 1}}
    check(api.client.post("/v1/jobs", json=body, headers=yours), 422, "unknown-dataset")
    assert api.client.get("/v1/datasets/digits", headers=yours).json()["facts"]["image_size"] == 8


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "zip"),
        (b"no archive at all", "zip"),
        (zipped({**images(), "../x.png": b"x"}), "../x.png"),
        (arrays(y_train=None), "y_train"),
    ],
)
def test_a_bad_upload_is_refused_and_leaves_nothing(api: Api, content: bytes, told: str) -> None:
    problem = check(upload(api, content), 422, "bad-dataset")
    assert told in problem["detail"]
    assert temporary_files(api) == []
    assert list(api.services.objects.list("datasets")) == []
    listed = api.client.get("/v1/datasets", headers=api.admin).json()["data"]
    assert [row["id"] for row in listed] == list(NAMED)


@sqlite_only
def test_a_body_that_is_too_large_is_refused_announced_or_not(api: Api) -> None:
    limit = api.services.settings.upload_max_bytes

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            yield bytes(limit // 2)

    for content in (bytes(limit + 1), pieces()):
        problem = check(upload(api, content), 413, "body-too-large")
        assert str(limit) in problem["detail"]
        assert temporary_files(api) == []


@sqlite_only
def test_forms_and_other_types_are_refused(api: Api) -> None:
    for media in ("multipart/form-data; boundary=x", "application/json", "text/plain"):
        answer = upload(api, b"x", {**api.admin, "Content-Type": media})
        assert "application/x-npz" in check(answer, 415, "unsupported-media-type")["detail"]


def test_names(api: Api) -> None:
    for name in ("digits", "Not%20A%20Slug", ""):
        problem = check(upload(api, zipped(images()), query=f"?name={name}"), 422, "invalid-request")
        assert problem["errors"][0]["field"] == "query.name"
