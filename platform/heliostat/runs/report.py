"""A report: one HTML page that needs nothing but itself, and its figures as PNG files.

Blocks are added in reading order; `write` renders them. The page always ends in a table of its
inputs that says of each whether it is real or generated, so a report cannot be made without one.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from heliostat.runs import clock
from heliostat.runs.inputs import Input
from heliostat.runs.plots import AxisLabels, Curve, plot_lines
from heliostat.runs.run_plots import standard_plots
from heliostat.runs.series import SeriesByStage
from heliostat.storage import Location

PAGE_NAME = "index.html"
Cell = str | int | float | bool | None

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Heading:
    text: str
    anchor: str
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True)
class _Text:
    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class _Markup:
    html: str
    kind: Literal["markup"] = "markup"


@dataclass(frozen=True)
class _Facts:
    facts: tuple[tuple[str, str], ...]
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True)
class _Column:
    name: str
    is_number: bool


@dataclass(frozen=True)
class _Table:
    columns: tuple[_Column, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class _Code:
    summary: str
    text: str
    kind: Literal["code"] = "code"


@dataclass(frozen=True)
class _Figure:
    file: str
    png: bytes
    caption: str
    kind: Literal["figure"] = "figure"

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"

    @property
    def width(self) -> int:
        """Width in CSS pixels, of which the image has two a side."""
        return _size(self.png)[0] // 2

    @property
    def height(self) -> int:
        """Height in CSS pixels."""
        return _size(self.png)[1] // 2


_Block = _Heading | _Text | _Markup | _Facts | _Table | _Code | _Figure


class Report:
    """A page under construction."""

    def __init__(self, title: str, *, subtitle: str, inputs: Sequence[Input]) -> None:
        if not inputs:
            raise ValueError("a report lists its inputs, each as real or generated; it has none")
        self._title = title
        self._subtitle = subtitle
        self._inputs = tuple(inputs)
        self._blocks: list[_Block] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        taken = {block.anchor for block in self._blocks if isinstance(block, _Heading)} | {"inputs"}
        stem = _slug(text)
        anchor = next(
            name for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000))) if name not in taken
        )
        self._blocks.append(_Heading(text, anchor))

    def text(self, text: str) -> None:
        """A paragraph of plain text."""
        self._blocks.append(_Text(text))

    def markdown(self, text: str) -> None:
        """Markdown; raw HTML in it is shown as text, and images are not loaded."""
        from markdown_it import MarkdownIt
        from markupsafe import Markup

        parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
        self._blocks.append(_Markup(Markup(parser.render(text))))

    def facts(self, facts: Mapping[str, Cell]) -> None:
        """A few figures that matter most, shown large."""
        self._blocks.append(_Facts(tuple((name, _shown(value)) for name, value in facts.items())))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = ""
    ) -> None:
        """A table; a column that holds only numbers is set flush right."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
        heads = tuple(
            _Column(name, is_number=_is_numeric([row[index] for row in rows]))
            for index, name in enumerate(columns)
        )
        cells = tuple(tuple(_shown(cell) for cell in row) for row in rows)
        self._blocks.append(_Table(heads, cells, caption))

    def code(self, text: str, summary: str) -> None:
        """Text as it is, folded away under its summary: a config, a command."""
        self._blocks.append(_Code(summary, text))

    def figure(self, png: bytes, caption: str, name: str) -> None:
        """A figure; its PNG is also written as a file of that name."""
        if not png.startswith(_PNG_SIGNATURE):
            raise ValueError(f"the figure {name} is no PNG")
        number = 1 + sum(isinstance(block, _Figure) for block in self._blocks)
        self._blocks.append(_Figure(f"{number:02d}-{_slug(name)}.png", png, caption))

    def plot_lines(
        self, curves: Mapping[str, Curve], labels: AxisLabels, title: str, caption: str
    ) -> None:
        """A figure of curves."""
        self.figure(plot_lines(curves, title, labels), caption, title)

    def standard_plots(self, series: SeriesByStage) -> None:
        """Loss, learning rate, throughput and evaluation of a run, where it has them."""
        for plot in standard_plots(series):
            self.figure(plot.png, plot.caption, plot.name)

    def write(self, folder: Location) -> Location:
        """Write the PNG files and then the page; returns where the page is."""
        for block in self._blocks:
            if isinstance(block, _Figure):
                (folder / block.file).write_bytes(block.png)
        page = folder / PAGE_NAME
        page.write_text(self.render())
        return page

    def render(self) -> str:
        """The page as HTML."""
        from jinja2 import Environment, StrictUndefined

        template = resources.files("heliostat.runs").joinpath("report.html").read_text("utf-8")
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        headings = [block for block in self._blocks if isinstance(block, _Heading)]
        return environment.from_string(template).render(
            title=self._title,
            subtitle=self._subtitle,
            blocks=self._blocks,
            headings=[*headings, _Heading("Inputs", "inputs")],
            inputs=self._inputs,
            date=clock.now()[:10],
        )


def _shown(cell: Cell) -> str:
    """A cell as text: four significant digits, thin spaces between thousands."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float) and not math.isfinite(cell):
        return "n/a" if math.isnan(cell) else str(cell)
    if isinstance(cell, int) or abs(cell) >= 10_000:
        return f"{cell:,.0f}".replace(",", "\u2009") if abs(cell) >= 10_000 else str(cell)
    return f"{cell:.4g}"


def _is_numeric(cells: Sequence[Cell]) -> bool:
    numbers = [cell for cell in cells if isinstance(cell, int | float)]
    others = [cell for cell in cells if isinstance(cell, str | bool)]
    return bool(numbers) and not others


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"


def _size(png: bytes) -> tuple[int, int]:
    """Width and height from the header chunk."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height
