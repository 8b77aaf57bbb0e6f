"""What the commands print: messages and progress on standard error; tables and JSON on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
"""Interval of progress lines if there is no terminal."""
_ANY_WIDTH = 10_000
"""Columns for measuring a table's full width."""
tables = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)


def say(text: str, style: str | None = None) -> None:
    """Print a line on standard error. It is never wrapped, so commands in it can be copied."""
    people.print(text, style=style, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


class _Progress(Progress):
    """A bar on a terminal; elsewhere a plain line when a task starts, every 30 s, and when it ends."""

    _printed_at: float | None = None
    """Monotonic time of the last line, or of the first update."""

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
        if self._printed_at is None:
            self._printed_at = now
        if now - self._printed_at >= LINE_SECONDS or (task.finished and not was_finished):
            self._printed_at = now
            say(_line(task))


def progress_bar() -> Progress:
    """A progress bar with count, time left and a `detail` field; plain lines if there is no terminal."""
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
        speed_estimate_period=86_400,  # a loop may take longer than rich's default of 30 s
        get_time=time.monotonic,
    )


def _line(task: Task) -> str:
    """A task's progress: `condensing 12/100, 40 s, left 5 min, loss 0.1`."""
    of = "" if task.total is None else f"/{task.total:.0f}"
    left = None if task.finished else task.time_remaining
    parts = [
        f"{task.description} {task.completed:.0f}{of}",
        duration(task.elapsed or 0),
        *([] if left is None else [f"left {duration(left)}"]),
        *filter(None, [task.fields["detail"]]),
    ]
    return ", ".join(parts)


def print_rows(
    rows: Sequence[dict[str, Any]],
    as_json: bool,
    columns: list[str],
    cells: Callable[[dict[str, Any]], list[str]],
) -> None:
    """Print what the service has listed on standard output: as JSON, or as a table with the `cells` of each row."""
    if as_json:
        print_json(rows)
    else:
        table("", columns, [cells(row) for row in rows])


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on standard output; if it is wider than the terminal, print each row as a few uncut lines."""
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
    """A fraction as a percentage, with its standard deviation if known: `62.10 ± 1.20 %`."""
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
    if (text := advice(rows)) is not None:
        tables.print(text, soft_wrap=True)


_MARKS = {
    None: "-",
    BETTER: "yes",
    NOT_ABOVE_RANDOM: "no: random",
    NOT_ABOVE_SHRUNK: "no: shrunk",
    WORSE_THAN_SMALLER: "no: smaller k",
}


def percent(row: Mapping[str, Any], source: str) -> str:
    """One cell of an accuracy table, from a manifest's row; rows of earlier releases have no shrunk images.

    With one network there is no standard deviation.
    """
    return accuracy(row.get(f"{source}_mean"), row.get(f"{source}_std") if row["repeats"] > 1 else None)
