"""What the commands print: errors, tables, JSON, progress bars. People read standard error, scripts standard output."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

people = Console(stderr=True, highlight=False, markup=False)
tables = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one error and end with that status."""
    people.print("Error:", message, style="red", soft_wrap=True)
    sys.exit(status)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def progress_bar() -> Progress:
    """A bar with count, time left, and a `detail` field; plain lines do without when nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=people,
        disable=not people.is_terminal,
    )


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output."""
    if title:
        tables.print(title, soft_wrap=True)
    drawn = Table()
    for column in columns:
        drawn.add_column(column, no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text, row))
    tables.print(drawn)


def duration(seconds: float) -> str:
    """To two digits, in the unit that suits: `3.2 s`, `12 min`, `15 h`, `4 days`."""
    for unit, length, limit in (
        ("s", 1, 90),
        ("min", 60, 5400),
        ("h", 3600, 172_800),
        ("days", 86_400, None),
    ):
        if limit is None or seconds < limit:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    raise AssertionError("the last unit has no limit")


def accuracy(mean: float | None, std: float | None) -> str:
    """A share as per cent with its spread: `62.10 ± 1.20 %`."""
    if mean is None:
        return "-"
    return f"{100 * mean:.2f} ± {100 * (std or 0):.2f} %"


def percent(row: dict[str, Any], source: str) -> str:
    """One cell of an accuracy table, from a manifest's row."""
    return accuracy(row[f"{source}_mean"], row[f"{source}_std"])
