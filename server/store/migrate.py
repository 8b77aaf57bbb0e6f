"""Bringing a database to a revision of the schema; `migrations/` holds the revisions."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import migrations
from server.store.db import open_engine

_LOCK = 0x6D646331  # any number that is ours: "mdc1"


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at `url` up to `revision`, whole or not at all; nothing happens when it is there."""
    _run(url, revision, up=True)


def downgrade(url: str, revision: str = "base") -> None:
    """Take the database at `url` down to `revision`; what the dropped tables held is lost."""
    _run(url, revision, up=False)


def current(connection: Connection) -> str | None:
    """The revision that the database has; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str | None:
    """The newest revision that this release knows."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    # '%' begins an interpolation in alembic's options.
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(url: str, revision: str, *, up: bool) -> None:
    engine = open_engine(url)
    config = _config()
    try:
        # Processes that start together take turns: SQLite by BEGIN IMMEDIATE, PostgreSQL by a lock.
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            (command.upgrade if up else command.downgrade)(config, revision)
    finally:
        engine.dispose()
