from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("server.app, server.cli", ("torch", "worker", "sklearn")),
        # An API process would hold them for its whole life; see docs/results/performance.md.
        ("server.app", ("numpy", "PIL", "celery", "alembic", "redis", "psycopg")),
    ],
)
def test_the_api_does_without(modules: str, without: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([name for name in {without} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
