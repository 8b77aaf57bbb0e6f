"""The revisions make what `server.store.tables` says, on both databases, with rows in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Column, DateTime, Engine, Float, Integer, MetaData, Table, inspect, select, text

import migrations
from server.store import db, jobs, migrate, sets
from server.store.db import Database, open_engine
from server.store.tables import Base
from tests.server.conftest import make_owner
from tests.services import postgres_database

pytestmark = pytest.mark.process


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


def row_of(table: Table, number: int) -> dict[str, Any]:
    """Values for every column that must have one; a foreign key refers to the row with the same number."""
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.name == "state" and table.name == "jobs":
            row[column.name] = "queued"
        elif column.foreign_keys:
            (target,) = column.foreign_keys
            row[column.name] = value_of(target.column, number)
        elif not column.nullable or column.name == "name":
            row[column.name] = value_of(column, number)
    return row


def value_of(column: Column[Any], number: int) -> Any:
    if isinstance(column.type, DateTime):
        return datetime(2026, 1, number, tzinfo=UTC)
    if isinstance(column.type, JSON):
        return {"number": number}
    if isinstance(column.type, Integer | Float):
        return number
    return f"row-{number}"


def tables_of(url: str) -> tuple[Engine, MetaData]:
    engine = open_engine(url)
    metadata = MetaData()
    metadata.reflect(engine)
    return engine, metadata


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    engine, metadata = tables_of(url)
    with engine.connect() as connection:
        found = {
            table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in metadata.sorted_tables
            if table.name != "alembic_version"
        }
    engine.dispose()
    return found


def test_every_step_up_and_down_keeps_what_both_revisions_know(empty_url: str) -> None:
    """With rows in every table: a step loses the tables and columns that it drops, and nothing else."""
    script = ScriptDirectory(str(Path(migrations.__path__[0])))
    revisions = [revision.revision for revision in reversed(list(script.walk_revisions()))]
    migrate.upgrade(empty_url, revisions[0])
    for lower, upper in pairwise(revisions):
        engine, metadata = tables_of(empty_url)
        with engine.begin() as connection:
            for table in metadata.sorted_tables:
                if table.name != "alembic_version" and not connection.execute(select(table)).first():
                    connection.execute(table.insert(), [row_of(table, number) for number in (1, 2)])
        engine.dispose()
        before = rows_of(empty_url)
        migrate.upgrade(empty_url, upper)
        above = rows_of(empty_url)
        assert kept(above, before) == before
        migrate.downgrade(empty_url, lower)
        assert rows_of(empty_url) == before
        migrate.upgrade(empty_url, upper)
        assert rows_of(empty_url) == above
    for lower in reversed(revisions[:-1]):
        before = rows_of(empty_url)
        migrate.downgrade(empty_url, lower)
        after = rows_of(empty_url)
        assert kept(before, after) == after
        assert all(len(rows) == 2 for name, rows in after.items() if name in before)
    migrate.downgrade(empty_url)
    assert table_names(empty_url) <= {"alembic_version"}


def kept(
    rows: dict[str, list[dict[str, Any]]], known: dict[str, list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Of `rows` the tables and columns that `known` has as well."""
    return {
        table: [
            {name: value for name, value in row.items() if name in known[table][0]} for row in rows[table]
        ]
        for table in known
    }


def test_a_revision_that_takes_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "LOCK_TIMEOUT_MS", 100)
    with postgres_database() as url, ThreadPoolExecutor(1) as pool:
        engine = open_engine(url)
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": migrate._LOCK})
            upgraded = pool.submit(migrate.upgrade, url)
            with pytest.raises(TimeoutError):
                upgraded.result(timeout=1)
        upgraded.result(timeout=60)
        engine.dispose()
        assert table_names(url) == {*Base.metadata.tables, "alembic_version"}


def test_processes_that_start_together_upgrade_once(empty_url: str) -> None:
    code = "import sys; from server.store import migrate; migrate.upgrade(sys.argv[1])"
    command = [sys.executable, "-c", code, empty_url]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert table_names(empty_url) == {*Base.metadata.tables, "alembic_version"}
