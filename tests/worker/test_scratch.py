"""Temporary files of an attempt go with the worker, even with one that is killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from worker.scratch import scratch_folder

HOLD_ONE = """
import sys
from worker.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_folder_of_a_killed_worker_goes_and_that_of_a_living_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD_ONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    (theirs / "data").write_bytes(b"x")
    with scratch_folder() as ours:
        assert (theirs / "data").exists()
    assert not Path(ours).exists()
    other.kill()
    other.communicate()
    assert theirs.exists()
    with scratch_folder():
        assert not theirs.exists()
    assert list(tmp_path.iterdir()) == []
