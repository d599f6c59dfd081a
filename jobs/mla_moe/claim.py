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

from heliostat.runs.claim import ClaimResult, Measurement, write_claim
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.storage import Location
from heliostat.train.fit import FitResult, fit
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
from jobs.mla_moe.claim_criteria import EXPORT, criteria
from jobs.mla_moe.claim_report import write_claim_report
from jobs.mla_moe.config import Config
from jobs.mla_moe.data import Corpus, open_corpus
from jobs.mla_moe.export_check import YARN, export_difference
from jobs.mla_moe.pipeline import Trained, task_of, train
from models.counting import parameter_count
from models.decoder_config import DecoderConfig

STATEMENT = (
    "Multi-head latent attention reaches the loss of multi-head attention with less than half of "
    "its cache, and fine-grained and shared experts, balanced by a bias without a loss, reach a "
    "lower loss than conventional ones (DeepSeek-V2, arXiv 2405.04434, section 2 and tables 8, 9; "
    "DeepSeek-V3, arXiv 2412.19437, section 4.5.2)."
)
LAST_STEPS = 200
"""Steps at the end of a training over which dropping is averaged."""


def claim(config: Config, run: Run) -> RunSummary:
    """Measure the claim over all seeds and write `claim.json` and a report."""
    corpus = open_corpus(config.data, run)
    seeds = config.claim.seeds
    planned = [arm for seed in seeds for arm in arms(config, seed)]
    points = [arm for seed in seeds[: config.claim.curve_seeds] for arm in curve(config, seed)]
    at_a_time = config.claim.parallel
    trained = in_parallel(
        lambda arm: train(arm.config, run, corpus, name=arm.stage),
        planned + points,
        at_a_time=at_a_time,
    )
    sharded = in_parallel(
        lambda arm: _fit_only(arm, run, corpus), shardings(config, seeds[0]), at_a_time=at_a_time
    )
    figures = [_measurement(arm, done) for arm, done in zip(planned + points, trained, strict=True)]
    figures += _trajectories(seeds[0], shardings(config, seeds[0]), sharded)
    figures += _exports(run, seeds[0], dict(zip((a.stage for a in planned), trained, strict=False)))
    result = ClaimResult(
        job="mla_moe",
        statement=STATEMENT,
        size=f"decoder {config.model.width} x {config.model.layers}, {config.fit.steps} steps",
        method=METHOD,
        baselines=tuple(dict.fromkeys(arm.name for arm in planned if arm.name != METHOD)),
        measurements=tuple(figures),
        criteria=tuple(criteria(figures)),
        inputs=corpus.inputs,
        command="heliostat claim mla_moe",
        seconds=run.seconds,
    )
    write_claim(run.folder, result, _docs_folder(config))
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


def _measurement(arm: Arm, done: Trained) -> Measurement:
    found = done.evaluation
    history = [row for row in done.result.history() if "loss" in row]
    dropped = [
        value
        for row in history[-LAST_STEPS:]
        for name, value in row.items()
        if name.startswith("dropped_share/")
    ]
    return Measurement(
        arm.name,
        arm.config.seed,
        {
            "loss_nats": found.loss,
            "maxvio_global": found.max_violation,
            "groups_per_token": found.metrics()["groups_per_token"],
            "most_groups_per_token": float(found.most_groups_per_token),
            "cache_bytes_per_token": float(found.cache_bytes_per_token),
            "parameters": float(parameter_count(done.task.decoder)),
            "dropped_share": statistics.fmean(dropped) if dropped else 0.0,
            "test_tokens": float(found.tokens),
        },
    )


def _fit_only(arm: Arm, run: Run, corpus: Corpus) -> FitResult:
    config = arm.config
    task = task_of(config, corpus.train, corpus.test)
    return fit(task, config.fit, run=run, resources=config.resources, name=arm.stage)


def _trajectories(
    seed: int, planned: Sequence[Arm], results: Sequence[FitResult]
) -> list[Measurement]:
    """How far the loss of each sharded training strays from that of one process."""
    losses = {
        arm.name: [row["loss"] for row in result.history() if "loss" in row]
        for arm, result in zip(planned, results, strict=True)
    }
    reference = losses[sharding_name(1, None, 0)]
    return [
        Measurement(
            name,
            seed,
            {
                "largest_loss_difference": max(
                    abs(one - other) for one, other in zip(values, reference, strict=True)
                )
            },
        )
        for name, values in losses.items()
    ]


def _exports(run: Run, seed: int, trained: dict[str, Trained]) -> list[Measurement]:
    """Both gates, with and without YaRN, written for transformers and read from it."""
    found = []
    for name in (METHOD, LOSS):
        done = next(one for stage, one in trained.items() if stage == _stage(name, seed))
        for label, yarn in (("plain", None), ("YaRN", YARN)):
            decoder = replace(done.task.decoder, yarn=yarn)

            def work(
                folder: Location, done: Trained = done, decoder: DecoderConfig = decoder
            ) -> dict[str, float]:
                with tempfile.TemporaryDirectory(prefix="heliostat-export-") as scratch:
                    return export_difference(done.result.last, decoder, Path(scratch))

            key = {"weights": done.result.last.uri, "decoder": repr(asdict(decoder))}
            figures = run.stage(f"{_stage(name, seed)}-export-{label.lower()}", key, work)
            found.append(Measurement(f"{EXPORT}, {name}, {label}", seed, figures))
    return found


def _stage(name: str, seed: int) -> str:
    slug = "".join(letter if letter.isalnum() else "-" for letter in name)
    return f"s{seed}-{'-'.join(part for part in slug.split('-') if part)}"


def _docs_folder(config: Config) -> Path | None:
    """`docs/` of a checkout that the claim is measured from, at its full length only."""
    docs = Path("docs")
    is_default = config.data.train is None and (config.fit.steps or 0) >= 1500
    return docs if is_default and (docs / "claims").is_dir() else None
