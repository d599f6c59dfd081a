"""The card of a bundle: one Markdown page for whoever uses the model without having trained it.

The order of the sections is fixed, and none may be empty: a card that says nothing about limits or
data is refused when it is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliostat.runs.inputs import Input

_NOT_STATED = "Not stated."
_METRICS = "Metrics"


@dataclass(frozen=True)
class Card:
    """What a user of the model must know."""

    title: str
    what: str
    """What the model takes, gives and is for."""
    inputs: Sequence[Input]
    metrics: Mapping[str, float]
    """Measured on data that training has not seen."""
    limits: str
    """What it cannot do and must not be used for."""
    how_made: str
    """Method, commands and versions, so that it can be made again."""
    licence: str

    def __post_init__(self) -> None:
        for name in ("title", "what", "limits", "how_made", "licence"):
            if not str(getattr(self, name)).strip():
                raise ValueError(f"the card of {self.title or 'a bundle'} says nothing in {name}")
        if not self.inputs:
            raise ValueError(f"the card of {self.title} names no input, real or generated")


def render_card(card: Card) -> str:
    """The card as Markdown."""
    inputs = [
        f"| {item.name} | {item.origin} | {item.description} | {item.licence} |"
        for item in card.inputs
    ]
    metrics = [f"| {name} | {value:.6g} |" for name, value in card.metrics.items()]
    figures = ["| metric | value |", "|---|---|", *metrics] if metrics else [_NOT_STATED]
    sections = [
        ("What it is", [card.what]),
        ("Data", ["| input | origin | what | licence |", "|---|---|---|---|", *inputs]),
        (_METRICS, figures),
        ("Limits", [card.limits]),
        ("How it was made", [card.how_made]),
        ("Licence", [card.licence]),
    ]
    blocks = [f"## {heading}\n\n" + "\n".join(lines) for heading, lines in sections]
    return "\n\n".join([f"# {card.title}", *blocks]) + "\n"


def card_metrics(text: str) -> dict[str, float]:
    """The metrics of a rendered card, as precise as they are written there."""
    _, _, section = text.partition(f"## {_METRICS}\n")
    rows = re.findall(r"^\| (.+) \| (\S+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return {name: float(value) for name, value in rows if name != "metric"}
