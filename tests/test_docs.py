"""The documentation gives every setting, preset and command truly, and its links and generated pages hold."""

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
from tools.reference import pages

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SETTINGS = (DOCS / "reference/settings.md").read_text()
GUIDES = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EXAMPLES = [
    shlex.split(line, comments=True)
    for page in GUIDES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("mdc ")
]


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", SETTINGS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/settings.md has no heading {heading!r}"
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


def without_code(page: Path) -> str:
    """Its text without fenced blocks, whose `#` begins no heading."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as the site makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_links_lead_somewhere() -> None:
    """Inside the site, to pages and headings that exist."""
    broken = [
        f"{page.relative_to(DOCS)}: {link}"
        for page in sorted(DOCS.rglob("*.md"))
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page))
        if "://" not in link and not leads_somewhere(page, link)
    ]
    assert broken == []


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.is_file() and target.is_relative_to(DOCS) and (not anchor or anchor in anchors(target))


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "zensical.toml").read_text()
    inside = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.parent.name != "decisions"}
    assert inside | {"decisions/index.md"} == set(re.findall(r'= "(\S+\.md)"', site))


def test_every_decision_is_listed() -> None:
    records = {page.name for page in (DOCS / "decisions").glob("0*.md")}
    assert records == set(re.findall(r"\((0\S+\.md)\)", (DOCS / "decisions/index.md").read_text()))


def test_generated_pages_are_current() -> None:
    for path, content in pages().items():
        assert path.read_text() == content, f"run `python -m tools.reference`, which writes {path.name}"
