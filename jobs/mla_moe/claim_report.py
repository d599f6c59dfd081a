"""The page of a measured claim: criteria, every arm with its spread, and loss against cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from heliostat.runs.claim import ClaimResult, Spread, summarise
from heliostat.runs.plots import AxisLabels, Curve, plot_bars, plot_lines
from heliostat.runs.report import Report
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.mla_moe.arms import (
    ANY_GROUPS,
    BIAS_AND_LOSS,
    CONVENTIONAL,
    DROPPING,
    GQA,
    LOSS,
    METHOD,
    MHA,
    MQA,
    NO_BALANCE,
    curve_name,
)
from jobs.mla_moe.config import Config

GROUPS = {
    "Attention": (METHOD, MHA, GQA, MQA),
    "Experts and their balance": (
        METHOD,
        NO_BALANCE,
        LOSS,
        BIAS_AND_LOSS,
        CONVENTIONAL,
        ANY_GROUPS,
        DROPPING,
    ),
}


def write_claim_report(run: Run, result: ClaimResult, config: Config) -> Location:
    """Write the page; returns where it is."""
    report = Report(
        "The claim of mla_moe " + ("holds" if result.holds else "does not hold"),
        subtitle=f"seeds {', '.join(map(str, result.seeds))}; {result.command}",
        inputs=result.inputs,
    )
    report.text(result.statement)
    report.text(
        "The published comparison was made on 16 and 250 billion parameters; what holds for this "
        "small model says nothing about those, and the other way round."
    )
    report.heading("Criteria")
    report.table(
        ("criterion", "measured", "must be", "threshold", "holds"),
        [
            (c.what, f"{c.measured:.3g}", c.relation, c.threshold, "yes" if c.holds else "NO")
            for c in result.criteria
        ],
        caption="Losses in nats a token on the test side, means over the seeds.",
    )
    summary = summarise(result)
    names = ("loss_nats", "maxvio_global", "groups_per_token", "cache_bytes_per_token")
    for heading, members in GROUPS.items():
        report.heading(heading)
        report.table(
            ("arm", "loss", "MaxVio", "groups a token", "cache, bytes a token"),
            [
                (
                    arm,
                    *(
                        f"{summary[arm][name].mean:.4g} ± {summary[arm][name].std:.2g}"
                        for name in names
                    ),
                )
                for arm in members
            ],
            caption="Mean and sample standard deviation over the seeds.",
        )
        report.figure(
            plot_bars(_by_seed(result, members, "loss_nats", "loss"), heading, "nats a token"),
            "Every seed is a dot.",
            f"loss {heading}",
        )
    report.figure(
        plot_bars(
            _by_seed(result, GROUPS["Experts and their balance"], "maxvio_global", "MaxVio"),
            "Imbalance over the test side",
            "MaxVio of the worst layer",
        ),
        "Every seed is a dot; 0 is an even load.",
        "max violation",
    )
    report.heading("Loss against cache")
    report.figure(
        plot_cache(result, config),
        "Every line is a width of the rotary key, every point a width of the latent; beside them "
        "plain heads with one, two and all heads of keys and values.",
        "cache",
    )
    rows = _cache_rows(result, config)
    report.table(
        ("attention", "cache, bytes a token", "loss"),
        rows,
        caption="Points of the curve, on its seeds.",
    )
    return report.write(run.artefact("report"))


def plot_cache(result: ClaimResult, config: Config) -> bytes:
    """Loss over bytes a token, for every rotary width and for plain heads."""
    curves = {}
    summary = _on_curve_seeds(result, config)
    for rotary in config.claim.rotary_widths:
        names = [_point_name(config, latent, rotary) for latent in config.claim.latent_widths]
        curves[f"latent, rotary {rotary}"] = _curve(summary, names)
    curves["plain heads"] = _curve(summary, (MQA, GQA, MHA))
    shown = {name: one for name, one in curves.items() if one.x}
    labels = AxisLabels("cache, bytes a token in float32", "loss, nats a token")
    return plot_lines(shown, "Loss against cache", labels)


def _point_name(config: Config, latent: int, rotary: int) -> str:
    own = config.model.attention
    is_method = (latent, rotary) == (own.latent_width, own.rotary_width)
    return METHOD if is_method else curve_name(latent, rotary)


def _on_curve_seeds(result: ClaimResult, config: Config) -> Mapping[str, Mapping[str, Spread]]:
    """The summary over the seeds that have every point of the curve."""
    seeds = config.claim.seeds[: config.claim.curve_seeds] or config.claim.seeds
    kept = tuple(item for item in result.measurements if item.seed in seeds)
    return summarise(replace(result, measurements=kept))


def _curve(summary: Mapping[str, Mapping[str, Spread]], names: Sequence[str]) -> Curve:
    rows = [summary[name] for name in names if name in summary]
    return Curve(
        [row["cache_bytes_per_token"].mean for row in rows], [row["loss_nats"].mean for row in rows]
    )


def _cache_rows(result: ClaimResult, config: Config) -> list[tuple[str, float, float]]:
    summary = _on_curve_seeds(result, config)
    names = [
        _point_name(config, latent, rotary)
        for latent in config.claim.latent_widths
        for rotary in config.claim.rotary_widths
    ]
    return [
        (name, summary[name]["cache_bytes_per_token"].mean, summary[name]["loss_nats"].mean)
        for name in (*names, MHA, GQA, MQA)
        if name in summary
    ]


def _by_seed(
    result: ClaimResult, members: Sequence[str], figure: str, label: str
) -> dict[str, dict[str, list[float]]]:
    return {
        arm: {label: [item.figures[figure] for item in result.measurements if item.arm == arm]}
        for arm in members
    }
