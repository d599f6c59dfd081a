"""The pages of a run and of the claim: tables of all schemes, and the three figures.

Loss by position shows where each scheme breaks; the window sweep shows an optimum inside and the
collapse at w = L; the third shows what more context is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from heliostat.runs.claim import ClaimResult
from heliostat.runs.inputs import Input
from heliostat.runs.plots import AxisLabels, Curve
from heliostat.runs.report import Report
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.rerope.criteria import ROPE, TRAINED_ROPE, standard_error
from jobs.rerope.evaluation import Losses
from jobs.rerope.study import EXPANSIONS, Study
from jobs.rerope.tasks import Variant
from jobs.rerope.trials import METHODS, label, rerope, windows
from models.positions import PositionScheme

Row = tuple[str | float | None, ...]
COLUMNS = ("scheme", "settings at 8 L", "loss L", "loss 4 L", "loss 8 L", "± 8 L", "accuracy 8 L")
BINS_PER_LENGTH = 4


def result_table(study: Study) -> list[Row]:
    """One row for each scheme: the last L targets with L, 4 L and 8 L tokens of context."""
    length, far = study.train_length, study.far
    rows: list[Row] = []
    for method in METHODS:
        at_far = study.chosen.plain[method, far]
        near = study.loss(ROPE, length)
        rows.append(
            (
                method,
                label(at_far),
                _mean(near),
                _mean(study.best(method, 4 * length)),
                _mean(study.best(method, far)),
                round(standard_error(study.best(method, far)), 3),
                _mean(study.accuracy(at_far, far)),
            )
        )
    trained = study.chosen.log_n[far]
    rows.append(_trained_row(study, "rerope, log n trained", "log_n", trained))
    rows.append(_trained_row(study, "rope, log n trained", "log_n", TRAINED_ROPE))
    rows.append(_trained_row(study, "rope, inverse leaky trained", "inverse_leaky", TRAINED_ROPE))
    return rows


def write_report(
    run: Run,
    study: Study,
    by_position: Mapping[str, Sequence[float]],
    inputs: Sequence[Input],
) -> Location:
    """The page of a run."""
    report = Report(
        "Reading beyond the training length",
        subtitle=f"rerope, run {run.id}",
        inputs=inputs,
    )
    best = study.chosen.plain["rerope", study.far]
    report.facts(
        {
            "trained at": study.train_length,
            "read at": study.far,
            "loss of rope at L": _mean(study.loss(ROPE, study.train_length)),
            "loss of rope at 8 L": _mean(study.loss(ROPE, study.far)),
            "loss of rerope at 8 L": _mean(study.best("rerope", study.far)),
            "window": best.window,
        }
    )
    add_study(report, study, by_position)
    report.heading("Training")
    report.standard_plots(run.series())
    report.heading("Configuration")
    report.code((run.folder / "config.yaml").read_text(), "The resolved config")
    return report.write(run.artefact("report"))


def write_claim_report(
    run: Run,
    result: ClaimResult,
    study: Study,
    by_position: Mapping[str, Sequence[float]],
) -> Location:
    """The page of the claim."""
    report = Report(
        "The claim of rerope " + ("holds" if result.holds else "does not hold"),
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
        caption="Losses in nats a token; differences are of the same windows.",
    )
    add_study(report, study, by_position)
    return report.write(run.artefact("report"))


def add_study(
    report: Report,
    study: Study,
    by_position: Mapping[str, Sequence[float]],
) -> None:
    """Tables and figures of a study."""
    report.heading("Schemes")
    report.text(
        f"The last {study.train_length} tokens of every window are scored, with the last L, 4 L or "
        "8 L tokens before them as context. Settings were chosen on the other half of the windows, "
        "with the same number of trials for every scheme that has settings; k is fixed for each "
        "trial and stands in its name."
    )
    report.table(
        COLUMNS,
        result_table(study),
        caption="Loss in nats a token, mean over seeds; ± is its standard error over windows.",
    )
    winner = min(METHODS, key=lambda method: float(study.best(method, study.far).mean()))
    report.text(f"Lowest loss at 8 L: {winner}, {label(study.chosen.plain[winner, study.far])}.")
    report.table(
        ("scheme", "loss", "accuracy"),
        _repeated_rows(study),
        caption="Repeated text at 8 L: what is predicted stood 4 L tokens before.",
    )
    report.heading("Figures")
    report.plot_lines(
        {name: _binned(row, study) for name, row in by_position.items()},
        AxisLabels("position", "loss, nats a token"),
        "Loss by position",
        f"Mean over bins of a quarter of L; the model was trained up to {study.train_length}.",
    )
    tried = windows(study.train_length)
    report.plot_lines(
        {
            f"log n {mode}": Curve(
                x=tried,
                y=[_mean(study.loss(rerope(w, mode), study.far)) for w in tried],
            )
            for mode in ("none", "post")
        },
        AxisLabels("window w", "loss at 8 L, nats a token"),
        "Window sweep",
        f"w = L = {study.train_length} collapses: the last positions are hardly trained.",
    )
    report.plot_lines(
        _context_curves(study),
        AxisLabels("tokens of context", "loss, nats a token"),
        "What more context is worth",
        "The same targets at every length.",
    )


def _trained_row(study: Study, name: str, variant: Variant, scheme: PositionScheme) -> Row:
    length, far = study.train_length, study.far
    middle = study.chosen.log_n[4 * length] if scheme.name == "rerope" else scheme
    losses = study.loss(scheme, far, variant=variant)
    return (
        name,
        label(scheme),
        _mean(study.loss(TRAINED_ROPE, length, variant=variant)),
        _mean(study.loss(middle, 4 * length, variant=variant)),
        _mean(losses),
        round(standard_error(losses), 3),
        _mean(study.accuracy(scheme, far, variant=variant)),
    )


def _repeated_rows(study: Study) -> list[Row]:
    far = study.far
    arms: list[tuple[str, Variant, PositionScheme]] = [
        (method, "plain", study.chosen.plain[method, far]) for method in METHODS
    ]
    arms.append(("rerope, log n trained", "log_n", study.chosen.log_n[far]))
    arms.append(("rope, inverse leaky trained", "inverse_leaky", TRAINED_ROPE))
    return [
        (
            name,
            _mean(study.loss(scheme, far, variant=variant, text="repeated")),
            _mean(study.accuracy(scheme, far, variant=variant, text="repeated")),
        )
        for name, variant, scheme in arms
    ]


def _context_curves(study: Study) -> Mapping[str, Curve]:
    length = study.train_length
    lengths = [expansion * length for expansion in EXPANSIONS]
    near = _mean(study.loss(ROPE, length))
    curves: dict[str, Curve] = {
        method: Curve(lengths, [near, *(_mean(study.best(method, n)) for n in lengths[1:])])
        for method in METHODS
    }
    trained = [_mean(study.loss(TRAINED_ROPE, length, variant="log_n"))]
    trained += [_mean(study.loss(study.chosen.log_n[n], n, variant="log_n")) for n in lengths[1:]]
    return {**curves, "rerope, log n trained": Curve(lengths, trained)}


def _binned(losses: Sequence[float], study: Study) -> Curve:
    width = max(1, study.train_length // BINS_PER_LENGTH)
    bins = np.asarray(losses[: len(losses) // width * width]).reshape(-1, width).mean(axis=1)
    return Curve(x=[(place + 0.5) * width for place in range(len(bins))], y=bins.tolist())


def _mean(losses: Losses) -> float:
    return round(float(losses.mean()), 3)
