"""What the command line prints, and how: plain text and tables, nothing interpreted in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from heliostat.config.settings import settings
from heliostat.runs.summary import Cell, RunSummary

MOST_PLACES = 3
"""Decimal places that the fractions of a column are filled up to."""
WIDTH_WITHOUT_TERMINAL = 160
"""Columns of a table that goes to a file or a log."""


def console(*, stderr: bool = False) -> Console:
    """A console that prints brackets and colons as they are."""
    width = None if settings().is_terminal else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)


def say(text: str) -> None:
    """A line on standard output, never wrapped."""
    console().print(text, soft_wrap=True)


def note(text: str) -> None:
    """A line on standard error, never wrapped."""
    console(stderr=True).print(text, soft_wrap=True)


def show_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """A table; numbers to the right, fractions with four significant digits in equal places."""
    rows = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numbers = [isinstance(row[index], (int, float)) for row in rows if row[index] is not None]
        table.add_column(column, justify="right" if numbers and all(numbers) else "left")
    places = [_places([row[index] for row in rows]) for index in range(len(columns))]
    for row in rows:
        table.add_row(*(_aligned(cell, most) for cell, most in zip(row, places, strict=True)))
    console().print(table)


def _places(column: Sequence[Cell]) -> int:
    """The most decimal places of a fraction in a column; 0 where an exponent or many are needed."""
    texts = [cell_text(cell) for cell in column if isinstance(cell, float)]
    most = max((len(text.partition(".")[2]) for text in texts), default=0)
    return most if most <= MOST_PLACES and not any("e" in text for text in texts) else 0


def _aligned(cell: Cell, places: int) -> str:
    """A cell as text, a fraction with the zeros that its column asks for."""
    text = cell_text(cell)
    if not places or not isinstance(cell, float) or not math.isfinite(cell):
        return text
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction.ljust(places, '0')}"


def cell_text(cell: Cell) -> str:
    """A cell as text; nothing is a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def show_summary(summary: RunSummary) -> None:
    """The last screen of a run: table, notes, paths, and at the end bundle and next command."""
    show_table(summary.title, summary.columns, summary.rows)
    for text in summary.notes:
        say(text)
    last = [name for name in summary.paths if name == "bundle"]
    for name in [*(name for name in summary.paths if name != "bundle"), *last]:
        say(f"{name}: {summary.paths[name]}")
    if summary.next_command is not None:
        say(f"next: {summary.next_command}")
