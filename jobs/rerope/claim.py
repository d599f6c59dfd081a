"""The claim, measured: reading far beyond the training length costs nothing with ReRoPE.

kexue.fm archives 9706, 9708, 9728 and 9731, in miniature: for every seed a plain rotary model, one
trained with log-n scaling and one with inverse leaky positions; every scheme with settings tuned
with as many trials as ReRoPE, on windows that are not reported.
"""

from __future__ import annotations

from collections.abc import Iterator

from heliostat.runs.claim import ClaimResult, Measurement, write_claim
from heliostat.runs.quotable import docs_folder
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from jobs.rerope.config import Config
from jobs.rerope.criteria import ROPE, TRAINED_ROPE, criteria
from jobs.rerope.report import write_claim_report
from jobs.rerope.study import (
    Study,
    loss_by_position,
    one_worker,
    open_corpus,
    position_lines,
    run_study,
    train_models,
)
from jobs.rerope.tasks import VARIANTS, Variant
from jobs.rerope.trials import (
    LEAKY_INTERVALS,
    METHODS,
    label,
    leaky,
    leaky_windows,
    rerope,
    windows,
)
from models.positions import PositionScheme

STATEMENT = (
    "A rotary language model read far beyond its training length keeps, and with log-n scaling "
    "improves, its loss when relative positions are frozen beyond a window (ReRoPE), without any "
    "further training, while plain rotary positions, interpolation and changed bases lose it "
    "(kexue.fm archives 9706, 9708, 9728, 9731)."
)


def claim(config: Config, run: Run) -> RunSummary:
    """Measure the claim over all seeds and write `claim.json` and a report."""
    config = one_worker(config)
    seeds = config.claim.seeds
    corpus = open_corpus(config, run)
    models = train_models(config, run, corpus, seeds)
    study = run_study(config, run, corpus, models, seeds)
    weights = {variant: models[variant, seeds[0]].final for variant in VARIANTS}
    by_position = loss_by_position(config, run, corpus, weights, position_lines(study))
    result = ClaimResult(
        job="rerope",
        statement=STATEMENT,
        size=f"{config.model.width} x {config.model.layers}, L = {config.length}",
        method="rerope at 8L",
        baselines=tuple(f"{method} at 8L" for method in METHODS if method != "rerope"),
        measurements=tuple(measurements(study)),
        criteria=tuple(criteria(study)),
        inputs=tuple(corpus.inputs()),
        command="heliostat claim rerope",
        seconds=run.seconds,
    )
    write_claim(run.folder, result, docs_folder("rerope", config))
    report = write_claim_report(run, result, study, by_position)
    run.finish({"holds": float(result.holds)}, seeds=seeds)
    return RunSummary(
        title="The claim " + ("holds" if result.holds else "does not hold"),
        columns=("criterion", "measured", "", "threshold", "holds"),
        rows=tuple(
            (c.what, round(c.measured, 3), c.relation, c.threshold, "yes" if c.holds else "NO")
            for c in result.criteria
        ),
        paths={"report": report.uri, "claim": (run.folder / "claim.json").uri},
    )


def measurements(study: Study) -> Iterator[Measurement]:
    """Every reported figure, arm by arm and seed by seed, the arms that lose included."""
    length, far = study.train_length, study.far
    arms: list[tuple[str, Variant, PositionScheme, int]] = [("rope at L", "plain", ROPE, length)]
    for n, name in ((4 * length, "4L"), (far, "8L")):
        arms += [(f"{m} at {name}", "plain", study.chosen.plain[m, n], n) for m in METHODS]
        arms.append((f"log-n trained, rerope at {name}", "log_n", study.chosen.log_n[n], n))
        arms.append((f"inverse leaky, rope at {name}", "inverse_leaky", TRAINED_ROPE, n))
    arms.append(("log-n trained, rope at L", "log_n", TRAINED_ROPE, length))
    arms.append(("inverse leaky, rope at L", "inverse_leaky", TRAINED_ROPE, length))
    for window in windows(length):
        for mode in ("none", "post"):
            scheme = rerope(window, mode)
            arms.append((f"sweep, {label(scheme)} at 8L", "plain", scheme, far))
    for window in leaky_windows(length):
        for k in LEAKY_INTERVALS:
            scheme = leaky(window, k)
            arms.append((f"{label(scheme)} at 8L", "plain", scheme, far))
    for name, variant, scheme, n in arms:
        for place, seed in enumerate(study.seeds):
            losses = study.loss(scheme, n, variant=variant)[place]
            yield Measurement(
                name,
                seed,
                {
                    "loss_nats": float(losses.mean()),
                    "loss_standard_error": float(losses.std(ddof=1) / len(losses) ** 0.5),
                    "accuracy": float(study.accuracy(scheme, n, variant=variant)[place].mean()),
                    **_settings(scheme),
                },
            )


def _settings(scheme: PositionScheme) -> dict[str, float]:
    """The chosen settings as figures, so that the file says what was measured."""
    named = {
        "window": scheme.window,
        "interval": scheme.interval,
        "group": scheme.group,
        "chunk": scheme.chunk,
        "local": scheme.local,
    }
    values = {name: float(value) for name, value in named.items() if value is not None}
    return {**values, "log_n_post": float(scheme.log_n == "post")}
