"""What a job hands back to the command line when it is done: one table and where things are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Cell = str | int | float | None


@dataclass(frozen=True)
class RunSummary:
    """The last screen of a run."""

    title: str
    """One line above the table: what was measured, on what."""
    columns: tuple[str, ...]
    """The table's header."""
    rows: tuple[tuple[Cell, ...], ...]
    """The table's rows, as long as the header; numbers stay numbers, None is shown as a dash."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """What lies where, in print order: `report`, `bundle`, ...; `bundle` is printed last."""
    next_command: str | None = None
    """What the user will most likely type next."""
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row has {len(row)} cells, but there are {self.columns=}")
