"""A database and an object store that do not belong together lose nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from mdc_core.errors import ConfigError
from server import cli
from server.app import create_app
from server.jobs.reaper import Reaper
from server.jobs.wakeup import Wakeup
from server.settings import Settings
from server.store import installation, migrate
from server.store.db import Database
from server.store.objects import ObjectStore, open_objects
from server.store.sweep import FEW, check_share, restore, sweep
from tests.server.conftest import TestClient, sqlite_only
from tests.server.test_sweep import add_dataset, keys

OLD = -24 * 3600.0
"""An age that everything has."""


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return open_objects(f"file://{tmp_path}/objects")


def fill(objects: ObjectStore, count: int = 18) -> set[str]:
    names = {f"datasets/{number}" for number in range(count)}
    for name in names:
        objects.put(name, name.encode())
    return names


def test_a_new_pair_gets_one_id_that_stays(db: Database, objects: ObjectStore) -> None:
    assert not installation.agrees(db, objects)
    made = installation.join(db, objects)
    assert installation.join(db, objects) == made
    assert objects.get(installation.KEY) == made.encode()
    assert installation.agrees(db, objects)


def test_a_pair_of_an_earlier_release_is_taken_over(db: Database, owner: str, objects: ObjectStore) -> None:
    fill(objects)
    add_dataset(db, owner, "datasets/1")
    installation.join(db, objects)
    assert installation.agrees(db, objects)


def test_an_id_that_was_not_stored_yet_is_stored(db: Database, objects: ObjectStore) -> None:
    made = installation.join(db, objects)
    objects.delete(installation.KEY)
    assert installation.join(db, objects) == made


def test_an_empty_database_beside_old_objects_is_refused(db: Database, objects: ObjectStore) -> None:
    names = fill(objects)
    with pytest.raises(ConfigError, match="the database is empty, but the object store holds"):
        installation.join(db, objects)
    assert keys(objects) == names
    installation.adopt(db, objects)
    assert installation.agrees(db, objects)


def test_an_empty_store_beside_an_old_database_is_refused(
    db: Database, owner: str, objects: ObjectStore
) -> None:
    installation.join(db, objects)
    add_dataset(db, owner, "datasets/1")
    objects.delete(installation.KEY)
    with pytest.raises(ConfigError, match="the object store is empty or another one"):
        installation.join(db, objects)


def test_two_installations_are_told_apart(db: Database, objects: ObjectStore) -> None:
    installation.join(db, objects)
    objects.put(installation.KEY, b"inst_other")
    with pytest.raises(
        ConfigError, match=r"belongs to the installation inst_.*, the object store to inst_other"
    ):
        installation.join(db, objects)


def test_no_reaper_sweeps_the_objects_of_another(
    db: Database, objects: ObjectStore, make_settings: Callable[..., Settings]
) -> None:
    names = fill(objects)
    settings = make_settings(sweep_age_seconds=0)
    reaper = Reaper(settings, db, objects, Wakeup(settings))
    with structlog.testing.capture_logs() as log:
        reaper.look()
    assert keys(objects) == names
    assert any("do not belong together" in line["event"] for line in log)


@sqlite_only
def test_a_lost_database_file_loses_neither_objects_nor_the_admin_key(
    db: Database, database_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "embedded"
    settings = Settings(data_dir=folder)
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").status_code == 200
    key = (folder / "admin.key").read_text()
    names = fill(open_objects(settings.objects_url))
    shutil.move(folder / "mdc.sqlite3", tmp_path / "backup.sqlite3")
    with pytest.raises(ConfigError, match="adopt-objects"), TestClient(create_app(settings)):
        pass
    assert keys(open_objects(settings.objects_url)) == names
    assert (folder / "admin.key").read_text() == key
    for left in folder.glob("mdc.sqlite3*"):
        left.unlink()
    shutil.move(tmp_path / "backup.sqlite3", folder / "mdc.sqlite3")
    with TestClient(create_app(settings)) as client:
        answer = client.get("/v1/keys", headers={"Authorization": f"Bearer {key.strip()}"})
        assert answer.status_code == 200


def test_a_new_admin_key_keeps_the_file_of_the_former(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "admin.key").write_text("mdc_former\n")
    with TestClient(create_app(settings)):
        pass
    assert [path.read_text() for path in tmp_path.glob("admin.key.*")] == ["mdc_former\n"]


def test_most_of_all_objects_go_only_when_the_operator_says_so(
    db: Database, owner: str, objects: ObjectStore
) -> None:
    fill(objects, FEW + 1)
    with pytest.raises(ConfigError, match=f"{FEW + 1} of {FEW + 1} uploads and sets"):
        check_share(db, objects, OLD)
    for number in range(6):
        add_dataset(db, owner, f"datasets/{number}")
    check_share(db, objects, OLD)


def test_what_was_swept_can_be_restored_for_a_week(
    db: Database, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = fill(objects)
    assert {stored.key for stored in sweep(db, objects, OLD)} == names
    assert keys(objects) == set()
    objects.put("datasets/3", b"new")
    assert set(restore(objects)) == names - {"datasets/3"}
    assert objects.get("datasets/3") == b"new"
    assert objects.get("datasets/7") == b"datasets/7"
    assert len(list(sweep(db, objects, OLD))) == 18
    monkeypatch.setattr("server.store.sweep.TRASH_SECONDS", OLD)
    list(sweep(db, objects, OLD))
    assert list(restore(objects)) == []


@sqlite_only
def test_commands_of_the_operator(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MDC_SWEEP_AGE_SECONDS", "0")
    objects = open_objects(Settings().objects_url)
    names = fill(objects)
    run = CliRunner()
    refused = run.invoke(cli.app, ["sweep"])
    assert refused.exit_code == 1
    assert "adopt-objects" in refused.stderr
    assert run.invoke(cli.app, ["adopt-objects"]).exit_code == 0
    refused = run.invoke(cli.app, ["sweep"])
    assert "--allow-most" in refused.stderr
    assert keys(objects) == names
    assert "18 objects" in run.invoke(cli.app, ["sweep", "--allow-most"]).stderr
    assert set(run.invoke(cli.app, ["restore-swept", "datasets/1"]).stdout.split()) == {
        name for name in names if name.startswith("datasets/1")
    }
    assert migrate.head() >= "0009"
