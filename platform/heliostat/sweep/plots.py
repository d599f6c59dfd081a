"""The figures of a sweep: the metric over each key, over the steps, and against second metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heliostat.runs import figure_style as style
from heliostat.sweep.config import RangeConfig
from heliostat.sweep.ledger import TrialRecord
from heliostat.sweep.outcome import ENDED, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_KEYS = 9
LOOKS = {"finished": (0, "o"), "stopped": (4, "v"), "replaced": (6, "X")}
"""Status to the number of its colour, and its marker."""
BEST = "best"


def plot_keys(outcome: Outcome) -> bytes:
    """The metric of each trial over each key that was varied; the best trial is ringed."""
    keys = outcome.keys[:MOST_KEYS]
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    with style.styled():
        figure, axes = style.new_figure(1.4 + 2.6 * rows, rows, columns, share_y=True)
        for place, (one, key) in enumerate(zip(axes, keys, strict=False)):
            _draw_key(one, outcome, key)
            one.set_xlabel(key)
            if place % columns == 0:
                one.set_ylabel(outcome.settings.metric)
        for spare in axes[len(keys) :]:
            spare.set_visible(False)
        style.add_title(figure, f"{outcome.settings.metric} by what was varied")
        style.add_legend(figure, axes[: len(keys)])
        return style.to_png(figure)


def plot_curves(outcome: Outcome) -> bytes:
    """The metric of each trial over optimiser steps; the best one stands out.

    A member that began with another's checkpoint is joined to it by a dotted line.
    """
    metric = outcome.settings.metric
    by_name = {record.name: record for record in outcome.records}
    with style.styled():
        figure, (one,) = style.new_figure(4.2)
        labelled: set[str] = set()
        for record in outcome.records:
            steps = [point.step for point in record.points]
            values = [point.metrics.get(metric, math.nan) for point in record.points]
            is_best = outcome.best is not None and record.name == outcome.best.name
            label = BEST if is_best else record.status
            look = style.colour(1 if is_best else LOOKS.get(record.status, (6, "X"))[0])
            one.plot(
                steps,
                values,
                color=look,
                lw=2.4 if is_best else 1.1,
                alpha=1.0 if is_best else 0.6,
                marker=LOOKS.get(record.status, (6, "X"))[1],
                ms=4,
                zorder=3 if is_best else 2,
                label=None if label in labelled else label,
            )
            labelled.add(label)
            parent = by_name.get(record.parent or "")
            if parent is not None and steps:
                _join(one, parent, record, metric)
        one.set_xlabel("optimiser step")
        one.set_ylabel(metric)
        style.add_title(figure, f"{metric} of {len(outcome.records)} trials")
        style.add_legend(figure, [one])
        return style.to_png(figure)


def plot_front(outcome: Outcome, second: str) -> bytes:
    """The metric against a second one; the trials that none beats are joined."""
    metric = outcome.settings.metric
    finished = [record for record in outcome.records if record.status == "finished"]
    with style.styled():
        figure, (one,) = style.new_figure(4.2)
        for is_front, label in ((False, "beaten"), (True, "unbeaten")):
            some = [record for record in finished if (record.name in outcome.front) is is_front]
            if not some:
                continue
            one.scatter(
                [record.value(second) for record in some],
                [record.value(metric) for record in some],
                s=40,
                color=style.colour(1 if is_front else 6),
                marker="D" if is_front else "o",
                edgecolors="white",
                linewidths=0.8,
                zorder=3 if is_front else 2,
                label=label,
            )
        front = sorted(
            (record.value(second), record.value(metric))
            for record in finished
            if record.name in outcome.front
        )
        one.plot(*zip(*front, strict=True), color=style.colour(1), lw=1.2, zorder=1)
        one.grid(visible=True, axis="both")
        one.set_xlabel(f"{second} ({_better(outcome.settings.second[second])})")
        one.set_ylabel(f"{metric} ({_better(outcome.settings.mode)})")
        style.add_title(figure, f"{metric} against {second}")
        style.add_legend(figure, [one])
        return style.to_png(figure)


def _better(mode: str) -> str:
    return "more is better" if mode == "max" else "less is better"


def _draw_key(axes: Axes, outcome: Outcome, key: str) -> None:
    values = outcome.settings.space[key]
    assert values is not None
    places = _places(values)
    metric = outcome.settings.metric
    for status, (number, marker) in LOOKS.items():
        some = [record for record in outcome.records if record.status == status]
        if some:
            axes.scatter(
                _positions(some, key, places),
                [record.value(metric) for record in some],
                s=34,
                color=style.colour(number),
                marker=marker,
                edgecolors="white",
                linewidths=0.7,
                zorder=3,
                label=status,
            )
    best = outcome.best
    if best is not None and best.status in ENDED:
        axes.scatter(
            _positions([best], key, places),
            [best.value(metric)],
            s=150,
            facecolors="none",
            edgecolors=style.colour(1),
            linewidths=1.8,
            zorder=4,
            label=BEST,
        )
    if places is not None:
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif values.log_uniform is not None:
        axes.set_xscale("log")


def _places(values: RangeConfig) -> list[str] | None:
    """Ticks for listed values, which stand at equal distances."""
    if values.integer is not None or values.listed is None:
        return None
    return [_text(value) for value in values.listed]


def _positions(records: Sequence[TrialRecord], key: str, places: list[str] | None) -> list[float]:
    if places is None:
        return [float(record.values[key] or 0) for record in records]
    return [float(places.index(_text(record.values[key]))) for record in records]


def _text(value: object) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _join(axes: Axes, parent: TrialRecord, child: TrialRecord, metric: str) -> None:
    donor = [point for point in parent.points if point.step <= child.parent_step]
    if donor:
        axes.plot(
            [donor[-1].step, child.points[0].step],
            [
                donor[-1].metrics.get(metric, math.nan),
                child.points[0].metrics.get(metric, math.nan),
            ],
            color=style.FAINT,
            ls=":",
            lw=1.2,
            zorder=1,
        )
