"""Uploads go when their owner says so, or when nobody has used them for as long as the operator keeps them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from server.jobs.reaper import Reaper
from server.jobs.wakeup import Wakeup
from server.settings import Settings
from server.store.tables import Dataset, Job, utcnow
from tests.server.archives import images, zipped
from tests.server.conftest import Api, serving, sqlite_only
from tests.server.test_problems import check


def uploaded(api: Api, headers: dict[str, str] | None = None, colour: int = 0) -> Any:
    headers = headers or api.admin
    answer = api.client.post(
        "/v1/datasets",
        content=zipped(images(4, colour=colour)),
        headers={**headers, "Content-Type": "application/zip"},
    )
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def test_a_deleted_upload_is_gone_with_its_bytes(api: Api) -> None:
    made = uploaded(api)
    key = f"datasets/{made['sha256']}"
    assert api.services.objects.head(key) is not None
    assert api.client.delete(f"/v1/datasets/{made['id']}", headers=api.admin).status_code == 204
    assert api.services.objects.head(key) is None
    check(api.client.delete(f"/v1/datasets/{made['id']}", headers=api.admin), 404, "not-found")
    listed = api.client.get("/v1/datasets", headers=api.admin).json()["data"]
    assert made["id"] not in [row["id"] for row in listed]


def test_others_keep_the_bytes_and_cannot_delete(api: Api) -> None:
    one, other = api.key("jobs:write", "jobs:read"), api.key("jobs:write", "jobs:read")
    mine, theirs = uploaded(api, one), uploaded(api, other)
    check(api.client.delete(f"/v1/datasets/{mine['id']}", headers=other), 404, "not-found")
    assert api.client.delete(f"/v1/datasets/{mine['id']}", headers=one).status_code == 204
    assert api.services.objects.head(f"datasets/{theirs['sha256']}") is not None
    assert api.client.get(f"/v1/datasets/{theirs['id']}", headers=other).status_code == 200


def test_what_a_job_needs_stays_until_it_has_ended(api: Api) -> None:
    made = uploaded(api)
    job = api.client.post("/v1/jobs", json={"dataset": made["id"]}, headers=api.admin).json()
    check(api.client.delete(f"/v1/datasets/{made['id']}", headers=api.admin), 409, "dataset-in-use")
    assert api.client.post(f"/v1/jobs/{job['id']}/cancel", headers=api.admin).status_code == 202
    assert api.client.delete(f"/v1/datasets/{made['id']}", headers=api.admin).status_code == 204


def test_named_sets_cannot_be_deleted(api: Api) -> None:
    check(api.client.delete("/v1/datasets/digits", headers=api.admin), 404, "not-found")


@sqlite_only
def test_unused_uploads_expire(make_settings: Callable[..., Settings]) -> None:
    with serving(make_settings(upload_days=30)) as api:
        services = api.services
        old, used, new = (uploaded(api, colour=colour) for colour in (1, 2, 3))
        api.client.post("/v1/jobs", json={"dataset": used["id"]}, headers=api.admin)
        before = utcnow() - timedelta(days=31)
        with services.db.begin() as session:
            for row in (old, used):
                session.execute(update(Dataset).where(Dataset.id == row["id"]).values(created_at=before))
        Reaper(services.settings, services.db, services.objects, Wakeup(services.settings))._expire()
        left = {row["id"] for row in api.client.get("/v1/datasets", headers=api.admin).json()["data"]}
        assert {used["id"], new["id"]} <= left
        assert old["id"] not in left
        assert services.objects.head(f"datasets/{old['sha256']}") is None
        with services.db.begin() as session:
            session.execute(update(Job).values(created_at=before, state="canceled"))
        Reaper(services.settings, services.db, services.objects, Wakeup(services.settings))._expire()
        left = {row["id"] for row in api.client.get("/v1/datasets", headers=api.admin).json()["data"]}
        assert used["id"] not in left


@sqlite_only
@pytest.mark.parametrize(
    ("part", "setting", "nearest"),
    [("condense", "outer_lops", "outer_loops"), ("evaluate", "repeat", "repeats")],
)
def test_a_mistyped_setting_is_told_what_is_near(api: Api, part: str, setting: str, nearest: str) -> None:
    answer = api.client.post("/v1/jobs", json={"dataset": "digits", part: {setting: 3}}, headers=api.admin)
    check(answer, 422, "invalid-config")
    assert f"did you mean {nearest}?" in answer.json()["detail"]
