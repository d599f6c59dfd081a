"""What the claim must show, with thresholds fixed before anything was measured.

Accuracies are in percent and differences in percentage points. A figure "for every seed" is the
worst over the seeds; a "mean" is over the seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from heliostat.runs.claim import Criterion, Measurement
from jobs.support_templates.config import ClaimConfig
from jobs.support_templates.scaling import ScalingPoint, fit_line, largest_rise

STRUCTURED = ("EMAIL", "PHONE", "CARD", "SSN", "IP", "URL", "IBAN", "HANDLE", "ACCOUNT", "DOB")


def criteria(
    config: ClaimConfig, figures: Sequence[Measurement], points: Sequence[ScalingPoint]
) -> list[Criterion]:
    """Every criterion with its measured value."""
    table = {(item.arm, item.seed): item.figures for item in figures}

    def gaps(winner: str, loser: str, figure: str) -> list[float]:
        return [table[winner, seed][figure] - table[loser, seed][figure] for seed in config.seeds]

    found: list[Criterion] = []
    for budget in config.label_budgets:
        adapted, general = f"general + DAPT, {budget} labels", f"general, {budget} labels"
        tfidf = f"TF-IDF, {budget} labels"
        found += _adaptation(budget, gaps, adapted, general)
        for figure, threshold in (("top1", 3.0), ("top3", 0.0), ("top5", 0.0)):
            value = statistics.fmean(gaps(f"{adapted}, long", tfidf, f"{figure}_percent"))
            what = f"{figure} over TF-IDF, {budget} labels, long schedule, mean"
            found.append(
                Criterion(
                    f"2-{figure}-{budget}", what, value, ">=" if threshold else ">", threshold
                )
            )
    found += _scaling(points)
    longest = f"general + DAPT, {config.label_budgets[-1]} labels, long"
    loss = statistics.fmean(gaps(longest, "last message only", "top1_percent"))
    what = "top1 that the context before the last message is worth, mean"
    found.append(Criterion("4-context", what, loss, ">=", 5.0))
    found += _redaction(table, config.seeds)
    worse = max(
        item.figures["calibrated_ece"] - item.figures["ece"]
        for item in figures
        if item.arm == longest
    )
    what = "calibration error added by temperature scaling, worst seed"
    found.append(Criterion("6-calibration", what, worse, "<=", 0.0))
    return found


def _adaptation(
    budget: int, gaps: Callable[[str, str, str], list[float]], adapted: str, general: str
) -> list[Criterion]:
    """The paper's claim: what domain adaptation is worth."""
    short_top1 = min(gaps(f"{adapted}, short", f"{general}, short", "top1_percent"))
    short_top5 = min(gaps(f"{adapted}, short", f"{general}, short", "top5_percent"))
    long_top1 = statistics.fmean(gaps(f"{adapted}, long", f"{general}, long", "top1_percent"))
    long_loss = max(gaps(f"{adapted}, long", f"{general}, long", "loss_nats"))
    return [
        Criterion(
            f"1a-top1-{budget}",
            f"top1 gained by adaptation, {budget} labels, short schedule, worst seed",
            short_top1,
            ">=",
            5.0,
        ),
        Criterion(
            f"1a-top5-{budget}",
            f"top5 gained by adaptation, {budget} labels, short schedule, worst seed",
            short_top5,
            ">=",
            4.0,
        ),
        Criterion(
            f"1b-top1-{budget}",
            f"top1 gained by adaptation, {budget} labels, long schedule, mean",
            long_top1,
            ">=",
            1.5,
        ),
        Criterion(
            f"1b-loss-{budget}",
            f"classification loss added by adaptation, {budget} labels, long schedule, worst seed",
            long_loss,
            "<",
            0.0,
        ),
    ]


def _scaling(points: Sequence[ScalingPoint]) -> list[Criterion]:
    line = fit_line(points)
    return [
        Criterion("3-points", "pairs of size and checkpoint", float(len(points)), ">=", 8.0),
        Criterion(
            "3-correlation", "correlation of adaptation loss and class loss", line.r, ">=", 0.8
        ),
        Criterion("3-slope", "slope of class loss over adaptation loss", line.b, ">", 0.0),
        Criterion(
            "3-monotone",
            "largest rise of the adaptation loss over checkpoints, nats",
            largest_rise(points),
            "<=",
            0.02,
        ),
    ]


def _redaction(
    table: Mapping[tuple[str, int], Mapping[str, float]], seeds: Sequence[int]
) -> list[Criterion]:
    rows = [table["redaction", seed] for seed in seeds]
    worst = min(row[f"recall_{kind}"] for row in rows for kind in STRUCTURED)
    return [
        Criterion("5-structured", "redaction recall, worst structured type", worst, ">=", 0.98),
        Criterion(
            "5-name", "redaction recall of names", min(r["recall_NAME"] for r in rows), ">=", 0.9
        ),
        Criterion(
            "5-address",
            "redaction recall of addresses",
            min(row["recall_ADDRESS"] for row in rows),
            ">=",
            0.85,
        ),
        Criterion(
            "5-clean",
            "clean messages flagged, percent",
            100 * max(row["clean_flagged_share"] for row in rows),
            "<=",
            3.0,
        ),
        Criterion(
            "5-verbatim",
            "structured values found verbatim after redaction",
            max(row["verbatim_values"] for row in rows),
            "<=",
            0.0,
        ),
    ]
