"""The report of a sweep: its table and figures on the page that every run has."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from heliostat.config.dump import to_yaml
from heliostat.runs.inputs import Input
from heliostat.runs.report import Report
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.sweep.outcome import Outcome
from heliostat.sweep.plan import SECTION, SweepPlan, spelled
from heliostat.sweep.plots import plot_curves, plot_front, plot_keys


def write_sweep_report(
    run: Run, plan: SweepPlan, job: str, outcome: Outcome, inputs: Sequence[Input]
) -> Location:
    """Write the page and its figures; returns where the page is."""
    settings, best = plan.settings, outcome.best
    assert best is not None
    report = Report(
        f"Sweep of {job}",
        subtitle=f"sweep {run.id}, size {plan.loaded.size}, config {run.digest[:12]}",
        inputs=inputs,
    )
    report.heading("Result")
    report.facts(
        {
            f"best {settings.metric}": best.value(settings.metric),
            "trials": len(outcome.records),
            "optimiser steps": outcome.steps,
        }
    )
    report.text(f"The best trial is {best.name}: {spelled(best.values)}.")
    report.figure(plot_keys(outcome), _keys_caption(outcome), "keys")
    if any(record.points for record in outcome.records):
        report.figure(plot_curves(outcome), _curves_caption(outcome), "curves")
    for second in settings.second:
        if outcome.front:
            caption = "Finished trials; those joined by a line are beaten by none in both."
            report.figure(plot_front(outcome, second), caption, f"front-{second}")
    report.heading("Trials")
    report.table(outcome.columns, outcome.rows(), _order(outcome))
    section = yaml.safe_load(plan.loaded.resolved_yaml)[SECTION]
    report.code(to_yaml({SECTION: section}), "The sweep as configured")
    return report.write(run.artefact("report"))


def _keys_caption(outcome: Outcome) -> str:
    return (
        f"{outcome.settings.metric} of each trial over each key that was varied; the best is "
        "ringed. Trials that were stopped early stand where they were stopped."
    )


def _curves_caption(outcome: Outcome) -> str:
    text = f"{outcome.settings.metric} at each evaluation."
    if any(record.parent for record in outcome.records):
        text += " A dotted line leads from the checkpoint that a trial began with."
    return text


def _order(outcome: Outcome) -> str:
    best = "highest" if outcome.settings.mode == "max" else "lowest"
    return f"In order of {outcome.settings.metric}, the {best} first; those without one last."
