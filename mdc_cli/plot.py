"""Plot an evaluation: accuracy over k."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mdc_core.training.evaluate import Row

LABELS = {
    "condensed": "condensed set, first k",
    "random": "k random real images",
    "shrunk": "shrunk real images, same bytes",
}


def accuracy_plot(rows: list[Row], title: str, path: Path) -> None:
    """Draw mean and standard deviation per source as a PNG."""
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for source, label in LABELS.items():
        chosen = [row for row in rows if row.source == source]
        if chosen:
            axes.errorbar(
                [row.k for row in chosen],
                [100 * row.mean for row in chosen],
                [100 * row.std for row in chosen],
                marker="o",
                capsize=3,
                label=label,
            )
    axes.set(xlabel="images per class, k", ylabel="test accuracy, %", title=title)
    axes.set_xticks(sorted({row.k for row in rows}))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
