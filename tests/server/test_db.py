"""What processes that use one database at once do to each other."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from server.settings import Settings
from server.store import db, periodic
from tests.conftest import both_sizes


def connect(path: Path) -> str:
    """The journal mode that a connection of the service has, with a table made by it."""
    database = db.Database(f"sqlite:///{path}")
    try:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS made (by_all)")
            return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    finally:
        database.dispose()


def test_the_first_connection_waits_for_one_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite3"
    with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # in the mode that new files have
        writer.execute("CREATE TABLE early (bird)")
        mode = pool.submit(connect, path)
        with pytest.raises(TimeoutError):
            mode.result(timeout=0.3)
        writer.execute("COMMIT")
        assert mode.result(timeout=30) == "wal"


def test_first_connections_that_come_together_all_succeed(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            assert set(pool.map(connect, [tmp_path / f"{turn}.sqlite3"] * 8)) == {"wal"}


def test_a_first_connection_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "LOCK_TIMEOUT_MS", 100)
    path = tmp_path / "new.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with closing(sqlite3.connect(path)) as late, pytest.raises(sqlite3.OperationalError, match="locked"):
            db.use_wal(late)


@both_sizes
def test_nobody_waits_for_ever_for_a_transaction_that_hangs(
    installation: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "LOCK_TIMEOUT_MS", 200)
    hanging, waiting = db.Database(installation.database_url), db.Database(installation.database_url)

    def take() -> bool:
        with waiting.begin() as session:
            return periodic.take(session, "chore", 3600)

    with ThreadPoolExecutor(1) as pool:
        with hanging.begin() as session:
            assert periodic.take(session, "chore", 3600)
            for _ in range(2):  # also on a connection whose first transaction was rolled back
                with pytest.raises(OperationalError, match="lock"):
                    pool.submit(take).result(timeout=10)
        assert not take()
    hanging.dispose()
    waiting.dispose()
