"""The claim, measured: a small cache and fine-grained balanced experts cost no quality.

DeepSeek-V2 (arXiv 2405.04434, tables 8 and 9 and section 2.2) and V3 (arXiv 2412.19437, section
4.5.2), in miniature: what was measured there on 16 and 250 billion parameters is not claimed from
here. For every seed all arms of `arms` are trained on the same rows in the same order and measured
on the same test rows; beside them the curve of loss against cache, trainings that are cut over
workers, and exports.

Every training is a stage of the run with one worker, several at a time; a claim that is interrupted
goes on.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from heliostat.config.dump import MAY_DIFFER, without_later_nulls
from heliostat.data.table import Table
from heliostat.errors import ConfigError
from heliostat.runs.claim import ClaimResult, Measurement, write_claim
from heliostat.runs.environment import versions
from heliostat.runs.measured import Measurements
from heliostat.runs.quotable import docs_folder
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.storage import Location
from heliostat.train.fit import fit
from heliostat.train.parallel import in_parallel
from jobs.mla_moe.arms import (
    LOSS,
    METHOD,
    Arm,
    arms,
    curve,
    sharding_name,
    shardings,
)
from jobs.mla_moe.claim_criteria import EXPORT, best_widths, criteria
from jobs.mla_moe.claim_report import write_claim_report
from jobs.mla_moe.config import Config
from jobs.mla_moe.data import Corpus, open_corpus
from jobs.mla_moe.export_check import YARN, export_difference
from jobs.mla_moe.pipeline import task_of, train
from models.counting import parameter_count
from models.yarn import YarnConfig

STATEMENT = (
    "Multi-head latent attention reaches the loss of multi-head attention with less than half of "
    "its cache, and fine-grained and shared experts, balanced by a bias without a loss, reach a "
    "lower loss than conventional ones (DeepSeek-V2, arXiv 2405.04434, section 2 and tables 8, 9; "
    "DeepSeek-V3, arXiv 2412.19437, section 4.5.2)."
)
ALIKE = 1e-5
"""Losses that differ by no more, in nats, count as the same."""
LAST_STEPS = 200
"""Steps at the end of a training over which dropping is averaged."""


def claim(config: Config, run: Run) -> RunSummary:
    """Measure the claim over all seeds and write `claim.json` and a report."""
    if config.model.source is not None:
        raise ConfigError(
            f"model.source is {config.model.source}, but every arm of the claim begins with random "
            "weights: leave it out"
        )
    corpus = open_corpus(config, run)
    measured = Measurements(run, [Location.of(file) for file in config.claim.measured])
    seeds = config.claim.seeds
    planned = [arm for seed in seeds for arm in arms(config, seed)]
    points = [arm for seed in seeds[: config.claim.curve_seeds] for arm in curve(config, seed)]

    def measure(arm: Arm) -> Measurement:
        return measured.of(
            arm.name, arm.config.seed, _decides(arm, corpus), lambda: _figures(arm, run, corpus)
        )

    figures = in_parallel(measure, planned + points, at_a_time=config.claim.parallel)
    tuned = best_widths(config, figures)
    if tuned is not None and tuned.arm != METHOD:
        others = [arm for seed in tuned.judged_on for arm in curve(config, seed)]
        figures += in_parallel(
            measure,
            [arm for arm in others if arm.name == tuned.arm],
            at_a_time=config.claim.parallel,
        )
    figures += _trajectories(config, run, corpus, measured)
    figures += _exports(
        [arm for arm in planned if arm.config.seed == seeds[0]], run, corpus, measured
    )
    result = ClaimResult(
        job="mla_moe",
        statement=STATEMENT,
        size=f"decoder {config.model.width} x {config.model.layers}, {config.fit.steps} steps",
        method=METHOD,
        baselines=tuple(dict.fromkeys(arm.name for arm in planned if arm.name != METHOD)),
        measurements=tuple(figures),
        criteria=tuple(criteria(figures, tuned)),
        inputs=corpus.inputs,
        command="heliostat claim mla_moe",
        seconds=run.seconds,
        parts=measured.parts,
    )
    write_claim(run.folder, result, docs_folder("mla_moe", config, ("parallel", "measured")))
    report = write_claim_report(run, result, config)
    run.finish({"holds": float(result.holds)}, seeds=seeds)
    return RunSummary(
        title="The claim " + ("holds" if result.holds else "does not hold"),
        columns=("criterion", "measured", "", "threshold", "holds"),
        rows=tuple(
            (
                c.what,
                float(f"{c.measured:.3g}"),
                c.relation,
                c.threshold,
                "yes" if c.holds else "NO",
            )
            for c in result.criteria
        ),
        paths={"report": report.uri, "claim": (run.folder / "claim.json").uri},
    )


def _decides(arm: Arm, corpus: Corpus) -> dict[str, object]:
    """Everything that decides the figures of an arm."""
    config = asdict(arm.config)
    for unrelated in (*MAY_DIFFER, "claim"):
        config.pop(unrelated)
    if arm.config.data.tokenizer is None:
        # What is measured with bytes stays what it was before there were tokenizers.
        config["data"].pop("tokenizer")
    workers = arm.config.resources
    return {
        "config": without_later_nulls(config),
        "workers": workers.workers.high,
        "expert_parallel": workers.expert_parallel,
        "train": Table.open(corpus.train).fingerprint,
        "test": Table.open(corpus.test).fingerprint,
    }


def _figures(arm: Arm, run: Run, corpus: Corpus) -> dict[str, float]:
    """Train an arm and measure it."""
    done = train(arm.config, run, corpus, name=arm.stage)
    found = done.evaluation
    history = [row for row in done.result.history() if "loss" in row]
    dropped = [
        value
        for row in history[-LAST_STEPS:]
        for name, value in row.items()
        if name.startswith("dropped_share/")
    ]
    return {
        "loss_nats": found.loss,
        "maxvio_global": found.max_violation,
        "groups_per_token": found.metrics()["groups_per_token"],
        "most_groups_per_token": float(found.most_groups_per_token),
        "cache_bytes_per_token": float(found.cache_bytes_per_token),
        "parameters": float(parameter_count(done.task.decoder)),
        "dropped_share": statistics.fmean(dropped) if dropped else 0.0,
        "test_tokens": float(found.tokens),
    }


def _trajectories(
    config: Config, run: Run, corpus: Corpus, measured: Measurements
) -> list[Measurement]:
    """How far the loss of each sharded training of the first seed strays from one process's."""
    return [
        measurement
        for without_choice in (False, True)
        for measurement in _strayed(config, run, corpus, measured, without_choice=without_choice)
    ]


def _strayed(
    config: Config, run: Run, corpus: Corpus, measured: Measurements, *, without_choice: bool
) -> list[Measurement]:
    seed = config.claim.seeds[0]
    planned = {arm.name: arm for arm in shardings(config, seed, without_choice=without_choice)}
    reference = planned[sharding_name(1, None, 0, without_choice=without_choice)]

    def losses(arm: Arm) -> list[float]:
        task = task_of(arm.config, corpus.train, corpus.test)
        resources = arm.config.resources
        result = fit(task, arm.config.fit, run=run, resources=resources, name=arm.stage)
        return [row["loss"] for row in result.history() if "loss" in row]

    def difference(arm: Arm) -> dict[str, float]:
        pairs = zip(losses(arm), losses(reference), strict=True)
        apart = [abs(one - other) for one, other in pairs]
        alike = next((step for step, by in enumerate(apart) if by > ALIKE), len(apart))
        return {"largest_loss_difference": max(apart), "steps_alike": float(alike)}

    def measure(arm: Arm) -> Measurement:
        decides = {**_decides(arm, corpus), "reference": _decides(reference, corpus)}
        return measured.of(arm.name, arm.config.seed, decides, lambda: difference(arm))

    # One after another: they share the reference, and those of two workers fill two cores.
    return [measure(arm) for arm in planned.values()]


def _exports(
    planned: Sequence[Arm], run: Run, corpus: Corpus, measured: Measurements
) -> list[Measurement]:
    """Both gates, with and without YaRN, written for transformers and read from it."""

    def difference(arm: Arm, label: str, yarn: YarnConfig | None) -> dict[str, float]:
        done = train(arm.config, run, corpus, name=arm.stage)
        decoder = replace(done.task.decoder, yarn=yarn)

        def work(folder: Location) -> dict[str, float]:
            with tempfile.TemporaryDirectory(prefix="heliostat-export-") as scratch:
                return export_difference(done.result.final, decoder, Path(scratch))

        key = {"weights": done.result.final.uri, "decoder": repr(asdict(decoder))}
        return run.stage(f"{arm.stage}-export-{label.lower()}", key, work)

    def measure(arm: Arm, label: str, yarn: YarnConfig | None) -> Measurement:
        decides = {
            **_decides(arm, corpus),
            "yarn": None if yarn is None else asdict(yarn),
            "transformers": versions()["transformers"],
        }
        name = f"{EXPORT}, {arm.name}, {label}"
        return measured.of(name, arm.config.seed, decides, lambda: difference(arm, label, yarn))

    return [
        measure(arm, label, yarn)
        for arm in planned
        if arm.name in (METHOD, LOSS)
        for label, yarn in (("plain", None), ("YaRN", YARN))
    ]
