"""Migrate a database to a revision of the schema, from `migrations/`.

Alembic is imported only if there is something to change: else it would stay in the API's memory for good.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import Connection, inspect, text

import migrations
from server.store.db import open_engine

_LOCK = 0x6D646331  # arbitrary; reads "mdc1"
_FOLDER = Path(migrations.__path__[0])


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrade the database at `url` to `revision` in one transaction. Does nothing if it is up to date."""
    if not _is_at(url, head() if revision == "head" else revision):
        _run(url, revision, up=True)


def upgrade_apart(url: str) -> None:
    """`upgrade` an SQLite database in a child process, so that this one never loads Alembic."""
    if not _is_at(url, head()):
        subprocess.run([sys.executable, "-m", "server.store.migrate", url], check=True)


def downgrade(url: str, revision: str = "base") -> None:
    """Downgrade the database at `url` to `revision`. The rows of dropped tables are lost."""
    _run(url, revision, up=False)


def _is_at(url: str, revision: str) -> bool:
    engine = open_engine(url)
    with engine.connect() as connection:
        present = current(connection)
    engine.dispose()
    return present == revision


def current(connection: Connection) -> str | None:
    """The database's revision; None if it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def head() -> str:
    """The newest revision of this release. Revisions are numbered, and file names start with the number."""
    return max(path.name.partition("_")[0] for path in _FOLDER.glob("versions/[0-9]*_*.py"))


def _run(url: str, revision: str, *, up: bool) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # Alembic's options interpolate '%'.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = open_engine(url, patient=True)
    try:
        # Processes that start together wait for each other: by BEGIN IMMEDIATE on SQLite, by a lock on PostgreSQL.
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 0"))  # a revision has no time limit
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            (command.upgrade if up else command.downgrade)(config, revision)
    finally:
        engine.dispose()


if __name__ == "__main__":
    upgrade(sys.argv[1])
