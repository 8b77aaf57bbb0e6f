"""The revisions make what `server.store.tables` says, on both databases, with rows in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

import migrations
from server.store import jobs, migrate, sets
from server.store.db import Database, open_engine
from server.store.tables import Base
from tests.server.conftest import make_owner
from tests.services import postgres_database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new.sqlite3"
        return
    with postgres_database() as url:
        yield url


def table_names(url: str) -> set[str]:
    engine = open_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_the_newest_revision_is_what_the_tables_say(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    engine = open_engine(empty_url)
    with engine.connect() as connection:
        assert migrate.current(connection) == migrate.head() is not None
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    found = {table: inspect(engine).get_check_constraints(table) for table in ("jobs", "datasets")}
    engine.dispose()
    assert [check["name"] for check in found["jobs"]] == ["ck_jobs_state"]


def test_files_are_named_by_their_revisions() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__path__[0])))
    revisions = list(scripts.walk_revisions())
    assert all(Path(one.path).name.startswith(f"{one.revision}_") for one in revisions)
    assert migrate.head() == scripts.get_current_head()


def test_a_database_that_is_up_to_date_needs_no_alembic(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    code = (
        "import sys; import server.app; from server.store import migrate; migrate.upgrade(sys.argv[1]); "
        "sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, empty_url], check=False).returncode == 0


def test_down_and_up_again_with_rows(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    db = Database(empty_url)
    owner = make_owner(db)
    with db.begin() as session:
        sets.claim_name(session, "toy", owner)
        jobs.submit(session, owner_id=owner, dataset="digits", name="toy", condense={}, evaluate={})
    db.dispose()
    migrate.downgrade(empty_url)
    assert table_names(empty_url) <= {"alembic_version"}
    migrate.upgrade(empty_url)
    assert table_names(empty_url) == {*Base.metadata.tables, "alembic_version"}


def test_processes_that_start_together_upgrade_once(empty_url: str) -> None:
    code = "import sys; from server.store import migrate; migrate.upgrade(sys.argv[1])"
    command = [sys.executable, "-c", code, empty_url]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert table_names(empty_url) == {*Base.metadata.tables, "alembic_version"}
