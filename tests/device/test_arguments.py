"""The command line's budget: every field once, as `mdc_core.delivery.budget` describes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdc_core.delivery.budget import Budget, budget_fields
from mdc_device.arguments import budget, option_of, parser

VALUES = {"boolean": (None, True), "string": ("convnet-d3-w128", "convnet-d3-w128")}


@pytest.mark.parametrize("name", budget_fields())
def test_every_field_of_a_budget_is_an_option(name: str) -> None:
    one = budget_fields()[name]
    text, value = VALUES.get(one.kind.json_type, ("1", 1))
    rates = {"seconds": ["--flops", "1e9"], "joules": ["--flops", "1e9", "--watts", "3"]}
    option = [option_of(one), *([] if text is None else [text])]
    found = budget(parser().parse_args(["plan", *option, *rates.get(name, [])]))
    assert getattr(found, name) == value


def test_the_help_describes_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for one in budget_fields().values():
        assert f"{option_of(one)} {one.unit}".strip() in text
        assert one.description[1:].removesuffix(".") in text


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    file.write_text(json.dumps({"storage_bytes": 5, "metered": True, "have_k": 2}))
    found = budget(parser().parse_args(["plan", "--budget", str(file), "--storage", "7k"]))
    assert found == Budget(storage_bytes=7000, metered=True, have_k=2)
