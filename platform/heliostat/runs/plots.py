"""The figures of a report: curves, bars with their spread, reliability diagrams, scaling fits.

Each function takes plain numbers and returns a PNG. Nothing here knows of runs; `run_plots.py`
picks what to show of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from heliostat.runs import figure_style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import FuncFormatter

SMOOTHING = 0.015
"""Width (sigma) of the running mean over a noisy curve, as a share of the curve's length."""


@dataclass(frozen=True)
class Curve:
    """Values over an axis."""

    x: Sequence[float]
    y: Sequence[float]
    is_noisy: bool = False
    """Drawn faintly, with a running mean over it."""


@dataclass(frozen=True)
class AxisLabels:
    """What the axes of a figure show, units included."""

    x: str
    y: str
    log_y: bool = False
    """Whether the vertical axis is logarithmic."""
    from_zero: bool = False
    """Whether the vertical axis begins at 0, and is the same in every panel."""


@dataclass(frozen=True)
class LineFit:
    """A straight line through points, by least squares."""

    intercept: float
    slope: float
    correlation: float
    """Pearson's r."""


@dataclass(frozen=True)
class Panels:
    """Curves in one panel or several, which share their labels."""

    labels: AxisLabels
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    """Title of a panel, then label of a curve, to the curve."""


def plot_panels(panels: Panels, title: str) -> bytes:
    """A grid of panels; a label has the same colour in each."""
    from matplotlib.ticker import MaxNLocator

    count = len(panels.curves)
    columns = min(count, 2 if count in (2, 4) else 3)
    rows = math.ceil(count / columns)
    names = list(dict.fromkeys(name for curves in panels.curves.values() for name in curves))
    with style.styled():
        figure, axes = style.new_figure(
            1.2 + (3.1 if rows == 1 else 2.3 * rows), rows, columns, share_y=panels.labels.from_zero
        )
        for index, (panel, curves) in enumerate(panels.curves.items()):
            one = axes[index]
            for name, curve in curves.items():
                _draw_curve(one, curve, name, names.index(name))
            if count > 1:
                one.set_title(panel)
            if index >= count - columns:
                one.set_xlabel(panels.labels.x)
            if index % columns == 0:
                one.set_ylabel(panels.labels.y)
            _scale_y(one, panels.labels)
            one.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True))
            one.xaxis.set_major_formatter(_thousands())
        for spare in axes[count:]:
            spare.set_visible(False)
        style.add_title(figure, title)
        style.add_legend(figure, axes[:count])
        return style.to_png(figure)


def plot_lines(curves: Mapping[str, Curve], title: str, labels: AxisLabels) -> bytes:
    """Curves in one panel."""
    return plot_panels(Panels(labels, {title: curves}), title)


def plot_bars(arms: Mapping[str, Mapping[str, Sequence[float]]], title: str, y_label: str) -> bytes:
    """Arm, then figure, to its values over the seeds: a bar for the mean, a whisker for the sample
    standard deviation, a dot for each seed."""
    figures = list(dict.fromkeys(name for values in arms.values() for name in values))
    width = 0.8 / len(arms)
    with style.styled():
        figure, (one,) = style.new_figure(4.2)
        for index, (arm, values) in enumerate(arms.items()):
            places = [i for i, name in enumerate(figures) if name in values]
            at = np.asarray(places, dtype=float) - 0.4 + (index + 0.5) * width
            samples = [np.asarray(values[figures[i]], dtype=float) for i in places]
            means = [float(np.mean(sample)) for sample in samples]
            spreads = [float(np.std(s, ddof=1)) if len(s) > 1 else 0.0 for s in samples]
            one.bar(at, means, width * 0.92, color=style.colour(index), label=arm, zorder=2)
            _draw_spread(one, at, samples, spreads, width)
            if len(arms) * len(figures) <= 18:
                _label_bars(one, at, means, samples, spreads)
        one.set_xticks(range(len(figures)), figures)
        one.tick_params(axis="x", length=0, labelsize=10)
        one.set_ylabel(y_label)
        one.margins(x=0.02, y=0.1)
        style.add_title(figure, title)
        style.add_legend(figure, [one])
        return style.to_png(figure)


@dataclass(frozen=True)
class HeatMap:
    """Values over two axes, drawn as colours."""

    x: Sequence[float]
    """Where the columns are."""
    values: Sequence[Sequence[float]]
    """Row by row, the first at the top."""


def plot_heat_maps(
    maps: Mapping[str, HeatMap], title: str, labels: AxisLabels, value_label: str, *, middle: float
) -> bytes:
    """One map below the other on a common scale; `middle` is the colour between the two hues."""
    from matplotlib.colors import TwoSlopeNorm

    highest = max(max(max(row) for row in one.values) for one in maps.values())
    norm = TwoSlopeNorm(vmin=0.0, vcenter=middle, vmax=max(highest, 1.01 * middle))
    with style.styled():
        figure, axes = style.new_figure(1.0 + 1.9 * len(maps), len(maps), 1)
        image = None
        for one, (name, heat) in zip(axes, maps.items(), strict=True):
            rows = len(heat.values)
            image = one.imshow(
                np.asarray(heat.values, dtype=float),
                aspect="auto",
                cmap="RdBu_r",
                norm=norm,
                interpolation="nearest",
                extent=(float(heat.x[0]), float(heat.x[-1]), rows - 0.5, -0.5),
            )
            one.grid(visible=False)
            one.set_title(name)
            one.set_ylabel(labels.y)
            one.xaxis.set_major_formatter(_thousands())
        axes[len(maps) - 1].set_xlabel(labels.x)
        assert image is not None
        figure.colorbar(image, ax=axes, label=value_label, shrink=0.8)
        style.add_title(figure, title)
        return style.to_png(figure)


def plot_scaling(
    groups: Mapping[str, Curve], title: str, labels: AxisLabels
) -> tuple[bytes, LineFit]:
    """Points in groups and the straight line through all of them."""
    x = np.concatenate([np.asarray(group.x, dtype=float) for group in groups.values()])
    y = np.concatenate([np.asarray(group.y, dtype=float) for group in groups.values()])
    fit = fit_line(x.tolist(), y.tolist())
    with style.styled():
        figure, (one,) = style.new_figure(4.4)
        ends = np.array([x.min(), x.max()])
        ends += np.array([-0.04, 0.04]) * (ends[1] - ends[0])
        sign = "+" if fit.slope >= 0 else "−"
        text = f"{fit.intercept:.3g} {sign} {abs(fit.slope):.3g} x,  r = {fit.correlation:.3f}"
        for index, (name, group) in enumerate(groups.items()):
            one.scatter(
                group.x,
                group.y,
                s=46,
                color=style.colour(index),
                marker=style.marker(index),
                edgecolors="white",
                linewidths=0.8,
                label=name,
                zorder=3,
            )
        line, label = fit.intercept + fit.slope * ends, f"fit: {text.replace('-', '−')}"
        one.plot(ends, line, color=style.FAINT, lw=1.4, ls="--", zorder=1, label=label)
        one.grid(visible=True, axis="both")
        one.set_xlabel(labels.x)
        one.set_ylabel(labels.y)
        style.add_title(figure, title)
        style.add_legend(figure, [one])
        return style.to_png(figure), fit


def fit_line(x: Sequence[float], y: Sequence[float]) -> LineFit:
    """`y = intercept + slope x` by least squares, with Pearson's r; needs two different x."""
    if len(set(x)) < 2:
        raise ValueError("a line needs points at two different places")
    across = np.asarray(x, dtype=float) - np.mean(x)
    up = np.asarray(y, dtype=float) - np.mean(y)
    slope = float(across @ up / (across @ across))
    size = math.sqrt(float(across @ across) * float(up @ up))
    return LineFit(
        intercept=float(np.mean(y) - slope * np.mean(x)),
        slope=slope,
        correlation=float(across @ up) / size if size else 0.0,
    )


def _draw_curve(axes: Axes, curve: Curve, name: str, index: int) -> None:
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    look = style.colour(index)
    if curve.is_noisy and len(y) > 20:
        axes.plot(x, y, color=look, alpha=0.25, lw=0.8)
        axes.plot(x, running_mean(y), color=look, ls=style.line_style(index), label=name)
        return
    points = style.marker(index) if len(y) <= 25 and not curve.is_noisy else None
    points = points or (style.marker(index) if len(y) == 1 else None)
    axes.plot(x, y, color=look, ls=style.line_style(index), marker=points, label=name)


def running_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """A centred running mean with Gaussian weights, so that it does not lag behind a falling curve;
    values that are not finite have no weight."""
    data = np.asarray(values, dtype=float)
    sigma = max(1.0, SMOOTHING * len(data))
    reach = min(len(data) - 1, math.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    known = np.isfinite(data)
    total = np.convolve(np.where(known, data, 0.0), kernel)[reach : reach + len(data)]
    weight = np.convolve(known.astype(float), kernel)[reach : reach + len(data)]
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.where(weight > 0, weight, math.nan))


def _draw_spread(
    axes: Axes,
    at: np.ndarray,
    samples: Sequence[np.ndarray],
    spreads: Sequence[float],
    width: float,
) -> None:
    means = [float(np.mean(sample)) for sample in samples]
    if any(len(sample) > 1 for sample in samples):
        axes.errorbar(at, means, spreads, fmt="none", ecolor=style.INK, elinewidth=1, capsize=3)
    for place, sample in zip(at, samples, strict=True):
        if len(sample) > 1:
            offsets = np.linspace(-0.18, 0.18, len(sample)) * width
            axes.scatter(
                place + offsets, sample, s=8, color="white", edgecolors=style.INK, lw=0.7, zorder=4
            )


def _label_bars(
    axes: Axes,
    at: np.ndarray,
    means: Sequence[float],
    samples: Sequence[np.ndarray],
    spreads: Sequence[float],
) -> None:
    largest = max(abs(mean) for mean in means)
    decimals = 3 if largest < 1 else 2 if largest < 10 else 1 if largest < 100 else 0
    for place, mean, sample, spread in zip(at, means, samples, spreads, strict=True):
        top = max(mean + spread, float(np.max(sample)))
        axes.annotate(
            f"{mean:.{decimals}f}",
            (place, top),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _scale_y(axes: Axes, labels: AxisLabels) -> None:
    from matplotlib.ticker import EngFormatter, LogFormatter, ScalarFormatter

    if labels.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        return
    low, high = axes.get_ylim()
    if labels.from_zero:
        axes.set_ylim(0, high * 1.03)
    if max(abs(low), abs(high)) >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    elif 0 < max(abs(low), abs(high)) < 0.02:
        powers = ScalarFormatter(useMathText=True)
        powers.set_powerlimits((-2, 4))
        axes.yaxis.set_major_formatter(powers)


def _thousands() -> FuncFormatter:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\u2009"))
