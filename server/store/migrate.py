"""Bringing a database to a revision of the schema; `migrations/` holds the revisions.

Alembic is imported only when there is something to change: an API process holds it for its whole life otherwise.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import Connection, inspect, text

import migrations
from server.store.db import open_engine

_LOCK = 0x6D646331  # any number that is ours: "mdc1"
_FOLDER = Path(migrations.__path__[0])


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at `url` up to `revision`, whole or not at all; nothing happens when it is there."""
    if not _is_at(url, head() if revision == "head" else revision):
        _run(url, revision, up=True)


def upgrade_apart(url: str) -> None:
    """`upgrade` an SQLite database by a process of its own, so that this one never holds Alembic."""
    if not _is_at(url, head()):
        subprocess.run([sys.executable, "-m", "server.store.migrate", url], check=True)


def downgrade(url: str, revision: str = "base") -> None:
    """Take the database at `url` down to `revision`; what the dropped tables held is lost."""
    _run(url, revision, up=False)


def _is_at(url: str, revision: str) -> bool:
    engine = open_engine(url)
    with engine.connect() as connection:
        found = current(connection)
    engine.dispose()
    return found == revision


def current(connection: Connection) -> str | None:
    """The revision that the database has; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def head() -> str:
    """The newest revision that this release knows: revisions are numbered, and their files are named by the number."""
    return max(path.name.partition("_")[0] for path in _FOLDER.glob("versions/[0-9]*_*.py"))


def _run(url: str, revision: str, *, up: bool) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # '%' begins an interpolation in alembic's options.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = open_engine(url, patient=True)
    try:
        # Processes that start together take turns: SQLite by BEGIN IMMEDIATE, PostgreSQL by a lock.
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 0"))  # a revision takes as long as it takes
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            (command.upgrade if up else command.downgrade)(config, revision)
    finally:
        engine.dispose()


if __name__ == "__main__":
    upgrade(sys.argv[1])
