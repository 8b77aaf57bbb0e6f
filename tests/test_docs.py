"""The guide tells every setting with its true default, every preset, and every command with true options."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from mdc_cli.main import app
from mdc_core.config.presets import PRESETS, SCHEDULES
from mdc_core.config.settings import UNUSED, CondenseConfig, EvaluateConfig
from server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs/guide.md").read_text()
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EXAMPLES = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("mdc ")
]


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/guide.md has no heading {heading!r}"
    return found[1]


def rows(heading: str) -> dict[str, str]:
    """First cell to second cell of the table below a heading, both in backticks."""
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", section(heading), re.MULTILINE))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names, with dots, and values, both as `--set` takes them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            yield prefix + name, text


@pytest.mark.parametrize(
    ("heading", "config"),
    [("Settings of a condensation", CondenseConfig()), ("Settings of an evaluation", EvaluateConfig())],
)
def test_settings_and_their_defaults(heading: str, config: BaseModel) -> None:
    assert rows(heading) == dict(flat(config.model_dump(mode="json")))


def test_presets() -> None:
    lines = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section("Presets"), re.MULTILINE))
    assert list(lines) == list(PRESETS)
    for name, preset in PRESETS.items():
        condense, evaluate = lines[name].split(" | ")
        assert re.findall(r"`([^`]+)`", condense) == [f"{n}={v}" for n, v in flat(preset.condense)]
        assert re.findall(r"`([^`]+)`", evaluate) == [f"{n}={v}" for n, v in flat(preset.evaluate)]


def test_the_schedule_of_feature_matching() -> None:
    """Its settings, those that differ for a preset, and those that it refuses."""
    told = section("Feature matching over every prefix")
    settings, refused = told.partition("It makes no use of")[::2]
    schedules = [SCHEDULES["feature"], *(preset.schedules.get("feature", {}) for preset in PRESETS.values())]
    expected = ["method=feature", *(f"{n}={v}" for schedule in schedules for n, v in flat(schedule))]
    assert re.findall(r"`(?:--set )?(\w+=[^`]+)`", settings) == expected
    assert re.findall(r"`(\w+)`", refused)[: len(UNUSED["feature"])] == list(UNUSED["feature"])


def test_service_settings() -> None:
    told = re.findall(r"^\| `(MDC_\w+)` \|", section("Settings of the service"), re.MULTILINE)
    assert told == [f"MDC_{name.upper()}" for name in Settings.model_fields]


def test_every_command_is_shown() -> None:
    assert {example[1] for example in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
def test_examples_have_true_options(example: list[str]) -> None:
    known = {option for parameter in COMMANDS[example[1]].params for option in parameter.opts}
    assert {word for word in example if word.startswith("--")} <= known


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in sorted((ROOT / "docs").rglob("*.md"))
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
