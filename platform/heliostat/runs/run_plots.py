"""The standard figures of a run, picked from its logged metrics by their names.

`loss` and `eval/loss` make the loss, `lr` the learning rate, `..._per_s` the throughput, and every
other `eval/...` the evaluation. A stage is a panel; a run of very many stages shows the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from heliostat.runs.plots import AxisLabels, Curve, Panels, plot_panels
from heliostat.runs.series import Series, SeriesByStage

MOST_PANELS = 12
_EVALUATION = "eval/"


@dataclass(frozen=True)
class RunPlot:
    """One figure of a run."""

    name: str
    """For a file."""
    caption: str
    png: bytes


def standard_plots(series: SeriesByStage) -> list[RunPlot]:
    """The figures for which a run has metrics."""
    families: list[tuple[str, str, AxisLabels, Callable[[Mapping[str, Series]], dict[str, Curve]]]]
    families = [
        ("loss", "Loss", AxisLabels("step", "loss"), _loss),
        ("learning-rate", "Learning rate", AxisLabels("step", "learning rate"), _learning_rate),
        ("throughput", "Throughput", _throughput_labels(series), _throughput),
        ("evaluation", "Evaluation", AxisLabels("step", "value"), _evaluation),
    ]
    plots = []
    for name, title, labels, pick in families:
        stages = {stage: pick(metrics) for stage, metrics in series.items()}
        shown = {stage: curves for stage, curves in stages.items() if curves}
        if not shown:
            continue
        first = dict(list(shown.items())[:MOST_PANELS])
        left_out = len(shown) - len(first)
        caption = f"{title} over optimiser steps, {_stages(list(first))}"
        caption += f"; {left_out} more stages are in metrics.parquet." if left_out else "."
        plots.append(RunPlot(name, caption, plot_panels(Panels(labels, first), title)))
    return plots


def _loss(metrics: Mapping[str, Series]) -> dict[str, Curve]:
    labels = {"loss": "training", "eval/loss": "evaluation"}
    return {
        label: _curve(metrics[name], is_noisy=name == "loss")
        for name, label in labels.items()
        if name in metrics
    }


def _learning_rate(metrics: Mapping[str, Series]) -> dict[str, Curve]:
    return {"learning rate": _curve(metrics["lr"])} if "lr" in metrics else {}


def _throughput(metrics: Mapping[str, Series]) -> dict[str, Curve]:
    # FLOP/s are billions of what the other rates are and would flatten them on one axis.
    names = [name for name in metrics if name.endswith("_per_s") and name != "flops_per_s"]
    return {name.removesuffix("_per_s"): _curve(metrics[name], is_noisy=True) for name in names}


def _throughput_labels(series: SeriesByStage) -> AxisLabels:
    units = {unit for metrics in series.values() for unit in _throughput(metrics)}
    # Panels that begin at 0 share their axis, which tokens and samples cannot.
    if len(units) == 1:
        return AxisLabels("step", f"{units.pop()} per second", from_zero=True)
    return AxisLabels("step", "per second")


def _evaluation(metrics: Mapping[str, Series]) -> dict[str, Curve]:
    names = [name for name in metrics if name.startswith(_EVALUATION) and name != "eval/loss"]
    return {name.removeprefix(_EVALUATION): _curve(metrics[name]) for name in names}


def _curve(series: Series, is_noisy: bool = False) -> Curve:
    return Curve(x=series.steps, y=series.values, is_noisy=is_noisy)


def _stages(names: list[str]) -> str:
    return f"stage {names[0]}" if len(names) == 1 else f"stages {', '.join(names)}"
