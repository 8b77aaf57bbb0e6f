"""Helpers that every part uses: atomic files, problem+json, pydantic's faults as text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from mdc_core.config.settings import CondenseConfig, faults
from mdc_core.delivery.problem_details import ProblemDetails, parse_problem
from mdc_core.system import atomic_file
from mdc_core.system.atomic_file import write_atomically

PROBLEM = "application/problem+json"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    write_atomically(file, b"old")
    monkeypatch.setattr(atomic_file, "publish", lambda *_: os.stat(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        write_atomically(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert file.read_bytes() == b"old"


def test_a_problem_is_read() -> None:
    body = b'{"title": "t", "detail": "no", "code": "c", "errors": [{"field": "a", "message": "b"}, {"field": "x"}]}'
    assert parse_problem(f"{PROBLEM}; charset=utf-8", body) == ProblemDetails("no", "c", ("a: b",))
    assert parse_problem(PROBLEM, b'{"title": "t", "code": 3}') == ProblemDetails("t")


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"errors": 3}', b'{"errors": [1]}'])
def test_what_is_no_problem_says_nothing(body: bytes) -> None:
    assert parse_problem(PROBLEM, body) == ProblemDetails()
    assert parse_problem("text/html", b'{"detail": "no"}') == ProblemDetails()


def test_faults_name_fields_and_suggest_a_near_one() -> None:
    with pytest.raises(ValidationError) as refused:
        CondenseConfig.model_validate({"ipcc": 3, "network": {"width": 1}})
    text = faults(refused.value)
    assert "network.width: Input should be greater than or equal to 4" in text
    assert "ipcc: Extra inputs are not permitted: did you mean ipc?" in text
    assert faults(refused.value, str.upper).count("NETWORK.WIDTH: ") == 1
    with pytest.raises(ValidationError) as refused:
        CondenseConfig(subset_weights=(1.0,))
    assert faults(refused.value).startswith("subset_weights belongs to")
