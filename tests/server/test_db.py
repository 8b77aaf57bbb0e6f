"""Connections to an SQLite file that several processes make at once."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from server.store import db


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
    monkeypatch.setattr(db, "BUSY_TIMEOUT_MS", 100)
    path = tmp_path / "new.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with closing(sqlite3.connect(path)) as late, pytest.raises(sqlite3.OperationalError, match="locked"):
            db.use_wal(late)
