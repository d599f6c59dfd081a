"""One look for every figure: colours, type, axes, and how a figure becomes a PNG.

The colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with any
common colour vision tell apart, without their yellow, which is lost on white. Line styles and
markers change along with the colours, so a figure also survives a black-and-white print.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

INK = "#1f2328"
FAINT = "#6b7280"
GRID = "#e5e7eb"
DPI = 200
"""Twice the 100 at which a page shows a figure, for sharp text on dense displays."""
WIDTH_IN = 8.0

_RC: dict[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


def colour(index: int) -> str:
    """The colour of the nth series."""
    return COLOURS[index % len(COLOURS)]


def line_style(index: int) -> str:
    """The line style of the nth series."""
    return LINES[index % len(LINES)]


def marker(index: int) -> str:
    """The marker of the nth series."""
    return MARKERS[index % len(MARKERS)]


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the common style, whatever the surroundings have set."""
    import matplotlib

    # Figures are made without pyplot, so no window, no global list of figures and no display.
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_RC}):
        yield


def new_figure(
    height_in: float,
    rows: int = 1,
    columns: int = 1,
    *,
    share_y: bool = False,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of the common width and its axes, row by row; `ratios` are the rows' heights."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y, height_ratios=ratios)
    return figure, list(grid.flat)


def add_title(figure: Figure, title: str) -> None:
    """The figure's title, at the left edge."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")


def add_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all axes below the figure, each label once; none for a single label."""
    entries: dict[str, Artist] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    if len(entries) > 1:
        longest = max(len(label) for label in entries)
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower left",
            ncols=max(1, min(len(entries), int(100 / (longest + 8)))),
            handlelength=2.4,
            columnspacing=1.6,
        )


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    target = io.BytesIO()
    # The constrained layout alone may leave the widest tick labels no room at the edge.
    figure.savefig(
        target,
        format="png",
        dpi=DPI,
        bbox_inches="tight",
        pad_inches=0.08,
        metadata={"Software": None},
    )
    return target.getvalue()
