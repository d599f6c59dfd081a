"""The page of a measured claim: criteria, every arm with its spread, and the scaling line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from heliostat.runs.claim import ClaimResult, summarise
from heliostat.runs.plots import AxisLabels, Curve, plot_bars, plot_scaling
from heliostat.runs.report import Report
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.support_templates.scaling import ScalingPoint, fit_line, scaling_rows


def write_claim_report(run: Run, result: ClaimResult, points: Sequence[ScalingPoint]) -> Location:
    """Write the page; returns where it is."""
    report = Report(
        "The claim of support_templates " + ("holds" if result.holds else "does not hold"),
        subtitle=f"seeds {', '.join(map(str, result.seeds))}; {result.command}",
        inputs=result.inputs,
    )
    report.text(result.statement)
    report.heading("Criteria")
    report.table(
        ("criterion", "measured", "must be", "threshold", "holds"),
        [
            (c.what, round(c.measured, 4), c.relation, c.threshold, "yes" if c.holds else "NO")
            for c in result.criteria
        ],
        caption="Accuracies in percent, differences in percentage points.",
    )
    report.heading("Every arm")
    summary = summarise(result)
    accuracies = {arm: row for arm, row in summary.items() if "test_messages" in row}
    names = ("top1_percent", "top3_percent", "top5_percent", "loss_nats", "calibrated_ece")
    report.table(
        ("arm", "top-1 %", "top-3 %", "top-5 %", "loss", "calibration error"),
        [
            (arm, *(f"{row[name].mean:.3g} ± {row[name].std:.2g}" for name in names))
            for arm, row in accuracies.items()
        ],
        caption="Mean and sample standard deviation over the seeds.",
    )
    for budget in _budgets(accuracies):
        report.figure(
            plot_bars(_by_seed(result, budget), f"Accuracy with {budget}", "percent"),
            f"Every seed is a dot; {budget} for training.",
            f"accuracy {budget}",
        )
    report.heading("Scaling")
    line = fit_line(points)
    report.text(
        f"Class loss = {line.a:.3f} + {line.b:.3f} x adaptation loss, r = {line.r:.3f}, over "
        f"{len(points)} pairs of model size and checkpoint."
    )
    sizes = dict.fromkeys(point.size for point in points)
    figure, _ = plot_scaling(
        {
            size: Curve(
                x=[p.lm_loss for p in points if p.size == size],
                y=[p.cls_loss for p in points if p.size == size],
            )
            for size in sizes
        },
        "Adaptation loss predicts class loss",
        AxisLabels("adaptation loss, nats per token", "class loss, nats"),
    )
    report.figure(figure, "One point for each checkpoint of each size.", "scaling")
    rows = scaling_rows(points, line)
    report.table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    return report.write(run.artefact("report"))


def _budgets(arms: Iterable[str]) -> list[str]:
    """The label budgets that arms are named by, `500 labels`, smallest first."""
    parts = {part for arm in arms for part in arm.split(", ") if part.endswith(" labels")}
    return sorted(parts, key=lambda part: int(part.split()[0]))


def _by_seed(result: ClaimResult, budget: str) -> dict[str, dict[str, list[float]]]:
    arms: dict[str, dict[str, list[float]]] = {}
    for item in result.measurements:
        if budget not in item.arm.split(", "):
            continue
        name = item.arm.replace(f", {budget}", "")
        figures = arms.setdefault(name, {"top-1": [], "top-3": [], "top-5": []})
        for key, values in figures.items():
            values.append(item.figures[f"{key.replace('-', '')}_percent"])
    return arms
