"""The operator's commands for API keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.access.tokens import check_key, present
from server.cli import app
from server.store.db import Database

pytestmark = pytest.mark.process

RUN = CliRunner()


def test_keys_are_made_with_an_end_listed_and_revoked(
    db: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDC_DATABASE_URL", database_url)
    monkeypatch.setenv("MDC_SECRET", "s" * 32)
    made = RUN.invoke(app, ["create-key", "phone", "--scope", "jobs:read", "--days", "2"])
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    listed = RUN.invoke(app, ["list-keys"])
    (row,) = map(json.loads, listed.stdout.splitlines())
    assert (row["name"], row["scopes"], row["revoked_at"]) == ("phone", ["jobs:read"], None)
    left = datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=1.9) < left <= timedelta(days=2)
    assert token.split("_", 2)[2] not in listed.stdout

    def works() -> bool:
        with db.read() as session:
            return check_key(session, present(b"s" * 32, token)) is not None

    assert works()
    assert RUN.invoke(app, ["revoke-key", row["id"]]).exit_code == 0
    assert not works()
    assert json.loads(RUN.invoke(app, ["list-keys"]).stdout)["revoked_at"] is not None
    unknown = RUN.invoke(app, ["revoke-key", "unknown"])
    assert unknown.exit_code != 0
    assert "there is no key 'unknown'" in unknown.output


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"DATA_DIR": "{folder}/garbage"}, ["file is not a database", "MDC_DATA_DIR"]),
        ({"DATA_DIR": "{folder}/new"}, ["no such table", "migrate"]),
        ({"DATA_DIR": "/proc/nowhere"}, ["No such file or directory: '/proc/nowhere'"]),
        (
            {"DATABASE_URL": "postgresql+psycopg://mdc@127.0.0.1:1/mdc", "SECRET": "s" * 32},
            ["onnection refused", "MDC_DATABASE_URL"],
        ),
        ({"DATABASE_URL": "postgresql+psycopg://mdc@127.0.0.1:1/mdc"}, ["MDC_SECRET is not set"]),
        ({"PORT": "70000", "MAX_ATTEMPTS": "0"}, ["Error: MDC_PORT: ", "; MDC_MAX_ATTEMPTS: "]),
        ({"LEASE_RENEW_SECONDS": "90"}, ["Error: MDC_LEASE_RENEW_SECONDS is 90, but the lease"]),
    ],
)
def test_what_an_operator_can_act_on_is_one_line(
    changes: dict[str, str], told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "mdc.sqlite3").write_text("not a database" * 100)
    for name, value in changes.items():
        monkeypatch.setenv(f"MDC_{name}", value.format(folder=tmp_path))
    refused = RUN.invoke(app, ["create-key", "phone", "--scope", "admin"])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: ")
    assert all(part in refused.stderr for part in told), refused.stderr
    assert "Traceback" not in refused.output


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "openapi"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
