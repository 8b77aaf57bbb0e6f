"""The benchmark that repeats the published experiment, with a toy schedule on digits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
CONDENSE = {
    "ipc": 2,
    "outer_loops": 3,
    "inner_iterations": 1,
    "mls_period": 1,
    "n_data": 64,
    "network": {"width": 4},
}
EVALUATE = {"epochs": 1, "repeats": 1}


def test_it_goes_on_call_by_call_until_the_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.paper_run", "--data", "digits", "--out", str(tmp_path)]
    command += ["--condense", json.dumps(CONDENSE), "--evaluate", json.dumps(EVALUATE), "--minutes"]

    def call(minutes: str) -> str:
        ran = subprocess.run([*command, minutes], check=True, capture_output=True, text=True, cwd=ROOT)
        return ran.stdout

    first = json.loads(call("0"))
    assert (first["unfinished"], first["outer_loops"]) == ("MDC", [1, 3])
    second = json.loads(call("0"))
    assert second["outer_loops"] == [2, 3]
    table = call("9")
    assert "### MDC" in table
    assert "### Baseline C" in table
    assert table.count("| average |") == 2
    assert "TFLOP/s" in table
