"""The benchmark that measures all of it on a GPU, with toys on a CPU: what it would print there, it prints here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent


def test_one_command_goes_through_all_of_it(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.on_gpu",
        "digits",
        "--toy",
        "--device",
        "cpu",
        "--out",
        "kept",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert "### Baseline C" in ran.stdout
    assert ran.stdout.count("| average |") == 2
    for row in (
        " passed",
        "| largest-subset-bf16 | ",
        "Evaluation at once",
        "aten::convolution_backward",
    ):
        assert row in ran.stdout
    again = subprocess.run(
        [*command, "--minutes", "0"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert again.stdout == ran.stdout
    assert again.stderr == ""
