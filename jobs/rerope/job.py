"""rerope: train rotary models at length L, then read 8 L under every position scheme.

ReRoPE freezes relative positions beyond a window (kexue.fm archive 9708); the baselines change
frequencies, interpolate, or regroup positions. Three small models are trained, with plain, log-n
scaled and inverse leaky positions; what is compared is how they are read.
"""

from __future__ import annotations

from heliostat.cluster.fit_plan import FitPlan
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.storage import Location
from jobs.rerope.bundle import save_model
from jobs.rerope.claim import claim
from jobs.rerope.config import Config
from jobs.rerope.criteria import ROPE
from jobs.rerope.report import COLUMNS, result_table, write_report
from jobs.rerope.study import (
    loss_by_position,
    open_corpus,
    position_lines,
    run_study,
    train_models,
)
from jobs.rerope.tasks import VARIANTS, model_shape, task_of, training_scheme

__all__ = ["FitPlan", "claim", "plan", "run"]


def run(config: Config, run: Run) -> RunSummary:
    """Read the sources, train three models, measure every scheme, save the models."""
    corpus = open_corpus(config, run)
    models = train_models(config, run, corpus, [config.seed])
    study = run_study(config, run, corpus, models, [config.seed])
    weights = {variant: models[variant, config.seed].final for variant in VARIANTS}
    by_position = loss_by_position(config, run, corpus, weights, position_lines(study))
    best = study.chosen.plain["rerope", study.far]
    metrics = {
        "nonrep_loss_L": float(study.loss(ROPE, study.train_length).mean()),
        "nonrep_loss_8L": float(study.loss(best, study.far).mean()),
        "rep_acc_8L": float(study.accuracy(best, study.far, text="repeated").mean()),
    }
    bundles = {}
    for variant in VARIANTS:
        done = models[variant, config.seed]
        name = "bundle" if variant == "plain" else f"bundle-{variant.replace('_', '-')}"
        bundles[name] = save_model(
            run,
            run.artefact(name),
            done.final,
            variant=variant,
            shape=model_shape(config, variant),
            scheme=training_scheme(config, variant),
            train_length=config.length,
            metrics=done.metrics,
            inputs=corpus.inputs(),
            data=corpus.train.fingerprint,
        ).uri
    report = write_report(run, study, by_position, corpus.inputs())
    run.finish(metrics)
    return RunSummary(
        title=f"Loss of the last {config.length} bytes, in nats, by context",
        columns=COLUMNS,
        rows=tuple(result_table(study)),
        paths={"report": report.uri, **bundles},
    )


def plan(config: Config) -> list[FitPlan]:
    """What `run` will train, in order."""
    nowhere = Location.of("/nonexistent")
    return [
        FitPlan(
            name=variant,
            task=task_of(config, variant, train=nowhere, validation=nowhere, seed=config.seed),
            fit=config.fit,
            resources=config.resources,
            tokens_per_sample=config.length,
        )
        for variant in VARIANTS
    ]
