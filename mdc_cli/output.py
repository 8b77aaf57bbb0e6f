"""What the commands print: errors, tables, JSON, progress bars. People read standard error, scripts standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mdc_core.config.shorten import duration
from mdc_core.delivery.verdict import BETTER, NOT_ABOVE_RANDOM, NOT_ABOVE_SHRUNK, WORSE_THAN_SMALLER, advice

people = Console(stderr=True, highlight=False, markup=False)
LINE_SECONDS = 30
"""Between two lines of progress where no terminal shows a bar."""
_ANY_WIDTH = 10_000
"""Columns, for measuring a table as if there were room."""
tables = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)


def say(text: str, style: str | None = None) -> None:
    """A line for people. It is never broken, so that a command in it can be copied whole."""
    people.print(text, style=style, soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


class _Progress(Progress):
    """A bar on a terminal; elsewhere plain lines: one as a task begins, every 30 s, and at its end."""

    _told: float | None = None
    """When the last line was printed, or the first update came, by the monotonic clock."""

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        """As `Progress.add_task`."""
        task_id = super().add_task(description, start, total, completed, visible, **fields)
        if self.disable:
            say(description if total is None else f"{description} {completed}/{total:.0f}")
        return task_id

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As `Progress.update`."""
        was_finished = self._tasks[task_id].finished
        super().update(task_id, **changes)
        if not self.disable:
            return
        task, now = self._tasks[task_id], self.get_time()
        if self._told is None:
            self._told = now
        if now - self._told >= LINE_SECONDS or (task.finished and not was_finished):
            self._told = now
            say(_line(task))


def progress_bar() -> Progress:
    """A bar with count, time left, and a `detail` field; plain lines do without when nobody watches."""
    return _Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=people,
        disable=not people.is_terminal,
        speed_estimate_period=86_400,  # a loop may take longer than the 30 s that are usual
        get_time=time.monotonic,
    )


def _line(task: Task) -> str:
    """Where a task is: `condensing 12/100, 40 s, left 5 min, loss 0.1`."""
    of = "" if task.total is None else f"/{task.total:.0f}"
    left = None if task.finished else task.time_remaining
    told = [
        f"{task.description} {task.completed:.0f}{of}",
        duration(task.elapsed or 0),
        *([] if left is None else [f"left {duration(left)}"]),
        *filter(None, [task.fields["detail"]]),
    ]
    return ", ".join(told)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; where it is wider than the terminal, a few lines per row, of which none is cut."""
    if title:
        tables.print(title, soft_wrap=True)
    drawn = Table(collapse_padding=True)
    for column in columns:
        drawn.add_column(column, no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text, row))
    if tables.measure(drawn, options=tables.options.update(width=_ANY_WIDTH)).maximum <= tables.width:
        tables.print(drawn)
        return
    for first, *others in rows:
        tables.print(first, soft_wrap=True)
        for column, cell in zip(columns[1:], others, strict=True):
            if cell:
                tables.print(f"  {column}: {cell}", soft_wrap=True)


def accuracy(mean: float | None, std: float | None) -> str:
    """A share as per cent with its spread, where that is known: `62.10 ± 1.20 %`."""
    if mean is None:
        return "-"
    return f"{100 * mean:.2f} %" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f} %"


def accuracy_table(title: str, rows: list[dict[str, Any]], best: Sequence[float] | None = None) -> None:
    """A set's accuracy at every size, from a manifest's rows with their verdicts, and advice on bad sizes.

    `best` adds a column: for each row, the mean over its trainings of the best of their four tests.
    """
    with_shrunk = any(row.get("shrunk_mean") is not None for row in rows)
    sources = {"mdc": "condensed", "random": "random real"} | (
        {"shrunk": "shrunk real"} if with_shrunk else {}
    )
    best_column = [] if best is None else ["condensed,\nbest of\n4 tests"]
    lengths = ["epochs"] if len({row["epochs"] for row in rows}) > 1 else []
    cells = [
        [
            *(str(row[name]) for name in ("k", *lengths)),
            *(percent(row, source) for source in sources),
            _MARKS[row.get("verdict")],
            *([] if best is None else [f"{100 * best[index]:.2f} %"]),
        ]
        for index, row in enumerate(rows)
    ]
    table(title, ["k", *lengths, *sources.values(), "worth it", *best_column], cells)
    if (told := advice(rows)) is not None:
        tables.print(told, soft_wrap=True)


_MARKS = {
    None: "-",
    BETTER: "yes",
    NOT_ABOVE_RANDOM: "no: random",
    NOT_ABOVE_SHRUNK: "no: shrunk",
    WORSE_THAN_SMALLER: "no: smaller k",
}


def percent(row: Mapping[str, Any], source: str) -> str:
    """One cell of an accuracy table, from a manifest's row; that of an earlier release has no shrunk images.

    One network tells nothing of the spread.
    """
    return accuracy(row.get(f"{source}_mean"), row.get(f"{source}_std") if row["repeats"] > 1 else None)
