"""The database: SQLite in embedded mode, PostgreSQL in production, with the same code for both."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from server.store.fair_lock import FairLock

LOCK_TIMEOUT_MS = 10_000
"""How long a transaction waits for another one's lock. Then it fails as if the database were unavailable."""
PAUSE_SECONDS = 2.0
"""For so long after a hang, requests fail at once instead of waiting for the database."""


class Database:
    """Opens transactions. Creates the folder of an SQLite file; migrations create the tables."""

    def __init__(self, url: str) -> None:
        """`url` is an SQLAlchemy URL. Connections open on first use."""
        self.engine = open_engine(url)
        self._ask_again = 0.0
        self._inode: int | None = None
        self._writer = sessionmaker(self.engine, expire_on_commit=False)
        # On SQLite other transactions take the write lock at once (BEGIN IMMEDIATE). A reader must not wait for it.
        readers = self.engine.execution_options(sqlite_begin="DEFERRED")
        self._reader = sessionmaker(readers, expire_on_commit=False)
        # SQLite lets one write at a time, and has the others look again and again, in no order. So the threads of a
        # process take turns before they take a connection, and leave the others to those who read.
        is_sqlite = self.engine.dialect.name == "sqlite"
        self._turn: AbstractContextManager[None] = FairLock() if is_sqlite else nullcontext()

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction that may write. It commits at the end, or rolls back on an exception."""
        with self._turn, self._answering(), self._writer.begin() as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only transaction."""
        with self._answering(), self._reader.begin() as session:
            yield session

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """After a hang, fail at once for `PAUSE_SECONDS`: waiting requests would use up all threads."""
        if monotonic() < self._ask_again:
            raise OperationalError("", None, TimeoutError("the database hung a moment ago"))
        try:
            yield
        except OperationalError as error:
            if getattr(error.orig, "is_hanging", False):
                self._ask_again = monotonic() + PAUSE_SECONDS
            raise

    def check_file(self) -> None:
        """Raise `FileNotFoundError` if the SQLite file was deleted or replaced while this process had it open."""
        path = self.engine.url.database
        if self.engine.dialect.name != "sqlite" or not path or path == ":memory:":
            return
        inode = Path(path).stat().st_ino
        if self._inode is None:
            self._inode = inode
        elif self._inode != inode:
            raise FileNotFoundError(f"{path} was replaced while it was open: restart the service")

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def insert_new(session: Session, table: type[DeclarativeBase], **values: Any) -> bool:
    """Add a row unless its key exists. Returns whether it was added.

    Waits for a concurrent transaction that adds the same key.
    """
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**values).on_conflict_do_nothing()
    return session.execute(statement.returning(*inspect(table).primary_key)).first() is not None


def open_engine(url: str, *, patient: bool = False) -> Engine:
    """An engine for `url`, configured for SQLite or PostgreSQL.

    `patient`: statements have no time limit (for migrations).
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_size=10, max_overflow=30, pool_pre_ping=True)
        if not patient:
            event.listen(engine, "do_connect", _connect_with_deadline)
        event.listen(engine, "connect", _set_lock_timeout)
        return engine
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def use_wal(connection: sqlite3.Connection) -> None:
    """Set WAL, the journal mode in which readers and a writer do not block each other. The file keeps the mode.

    Retries while another connection writes or sets the mode. SQLite's busy timeout does not cover this case: setting
    the mode reads first, and SQLite refuses to upgrade a read lock at once. Raises `sqlite3.OperationalError` after
    `LOCK_TIMEOUT_MS`, or one busy timeout later.
    """
    deadline = monotonic() + LOCK_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # The lowest byte is the primary result code; the others refine it.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
        sleep(0.01)


def _connect_with_deadline(
    _dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]
) -> Any:
    from server.store.deadline import connect  # imported here: an SQLite installation has no psycopg

    return connect(*arguments, **options)


def _set_lock_timeout(connection: Any, _record: object) -> None:
    connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    connection.commit()  # else a rollback would undo the SET


def _set_pragmas(connection: Any, _record: object) -> None:
    # Else the driver opens transactions itself, and only at the first write: see `_begin_sqlite`.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={LOCK_TIMEOUT_MS}")
    use_wal(connection)
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at the start. Else a transaction that reads, then writes, can fail with 'locked'."""
    mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    connection.exec_driver_sql(f"BEGIN {mode}")
