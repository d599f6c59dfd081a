"""The claim, measured: domain adaptation improves template accuracy, and its loss predicts it.

Wyatte et al., arXiv 2405.15765, tables 3 and figure 3, in miniature. For every seed: pretrain,
adapt, then fine-tune from the general and from the adapted decoder with the same labels, order and
schedule, at two label budgets and two schedules; beside them TF-IDF, tuned on validation. Seeds
differ in the simulated conversations, the labels drawn and the initial weights. A smaller decoder
and checkpoints along the adaptation give the scaling points.

Every training is a stage of the run with one worker, several at a time; a claim that is interrupted
goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heliostat.config.int_range import IntRange
from heliostat.errors import ConfigError
from heliostat.runs.claim import ClaimResult, Criterion, Measurement, write_claim
from heliostat.runs.quotable import docs_folder
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.train.config import FitConfig
from heliostat.train.fit import FitResult
from heliostat.train.parallel import in_parallel
from jobs.support_templates.arms import classical_arms, recent_template_ids
from jobs.support_templates.claim_criteria import criteria
from jobs.support_templates.claim_report import write_claim_report
from jobs.support_templates.config import RANDOM_WEIGHTS, ClaimConfig, ClassifierStage, Config
from jobs.support_templates.evaluation import Evaluation
from jobs.support_templates.pipeline import (
    Base,
    Conversations,
    Labelled,
    adapt,
    fine_tune,
    general_documents,
    label,
    open_base,
    open_conversations,
)
from jobs.support_templates.redaction_check import redaction_figures
from jobs.support_templates.run_report import inputs_of
from jobs.support_templates.scaling import ScalingPoint
from models.counting import training_compute

STATEMENT = (
    "Continuing language-model pretraining on unlabelled in-domain transcripts, then fine-tuning "
    "the same decoder as a classifier, gives better top-k template accuracy than fine-tuning the "
    "general model, and the language-modelling loss after adaptation predicts the classification "
    "loss (Wyatte et al., arXiv 2405.15765, table 3 and figure 3)."
)
CHECKPOINTS = 5
"""Checkpoints along the adaptation that are fine-tuned for the scaling report, for each size."""
EVALUATIONS = 40
"""Evaluations of an adaptation; the first of them is the first checkpoint of the scaling report."""


@dataclass(frozen=True)
class Arm:
    """One fine-tuning of the study."""

    name: str
    budget: int
    schedule: str
    adapted: bool
    last_message_only: bool = False


@dataclass(frozen=True)
class Seed:
    """Everything of one repetition before fine-tuning."""

    seed: int
    config: Config
    conversations: Conversations
    base: Base
    adapted: FitResult

    @property
    def prefix(self) -> str:
        """Begins the names of its stages."""
        return f"s{self.seed}-"


def claim(config: Config, run: Run) -> RunSummary:
    """Measure the claim over all seeds and write `claim.json` and a report."""
    if config.claim.second_width == config.model.width:
        raise ConfigError(
            f"claim.second_width is {config.claim.second_width}, which is model.width too; the "
            "scaling report compares two sizes"
        )
    if config.model.source != RANDOM_WEIGHTS:
        raise ConfigError(
            f"model.source is {config.model.source}; the claim compares two sizes from random "
            "weights (model.source=config)"
        )
    if config.data.cases is not None:
        raise ConfigError(
            "data.cases is given; the claim measures redaction against what the simulator planted, "
            "so it needs simulated conversations (data.simulator.seed_utterances for real openings)"
        )
    given, config = config, _one_worker(config)
    # The general text is shared: prepared before anything runs in parallel.
    general_documents(config, run)
    prepared = [with_seed(config, seed) for seed in config.claim.seeds]
    at_a_time = config.claim.parallel
    *seeds, small = in_parallel(
        lambda entry: _pretrain(run, *entry),
        [*((one, f"s{one.seed}-") for one in prepared), (_smaller(prepared[0]), "small-")],
        at_a_time=at_a_time,
    )
    measured = _measure_all(run, seeds, at_a_time)
    points = _scaling_points(run, (seeds[0], small), at_a_time)
    figures = [figure for group in measured for figure in group]
    for seed in seeds:
        recalls = redaction_figures(seed.config, run, seed.conversations)
        figures.append(Measurement("redaction", seed.seed, recalls))
    inputs = inputs_of(config, seeds[0].base, seeds[0].conversations)
    result = ClaimResult(
        job="support_templates",
        statement=STATEMENT,
        size=f"decoder {config.model.width} x {config.model.layers}",
        method=_key(True, config.claim.label_budgets[-1], "long"),
        baselines=(
            _key(False, config.claim.label_budgets[-1], "long"),
            f"TF-IDF, {config.claim.label_budgets[-1]} labels",
        ),
        measurements=(*figures, *_as_measurements(points, seeds[0].seed)),
        criteria=tuple(criteria(config.claim, figures, points)),
        inputs=tuple(inputs),
        command=_command(config),
        seconds=run.seconds,
    )
    write_claim(run.folder, result, docs_folder("support_templates", given))
    report = write_claim_report(run, result, points)
    run.finish({"holds": float(result.holds)}, seeds=config.claim.seeds)
    return RunSummary(
        title="The claim " + ("holds" if result.holds else "does not hold"),
        columns=("criterion", "measured", "", "threshold", "holds"),
        rows=tuple(_row(criterion) for criterion in result.criteria),
        paths={"report": report.uri, "claim": (run.folder / "claim.json").uri},
    )


def _pretrain(run: Run, config: Config, prefix: str) -> Seed:
    conversations = open_conversations(config, run)
    base = open_base(config, run, prefix=prefix)
    adapted = adapt(config, run, base, conversations, name=f"{prefix}dapt")
    return Seed(config.seed, config, conversations, base, adapted)


def arms(config: Config) -> list[Arm]:
    """Every fine-tuning of one seed."""
    settings = config.claim
    plain = [
        Arm(_key(adapted, budget, schedule), budget, schedule, adapted)
        for budget in settings.label_budgets
        for schedule in ("short", "long")
        for adapted in (False, True)
    ]
    largest = settings.label_budgets[-1]
    return [*plain, Arm("last message only", largest, "long", True, last_message_only=True)]


def _measure_all(run: Run, seeds: Sequence[Seed], at_a_time: int) -> list[list[Measurement]]:
    labelled = {
        (seed.seed, budget, last_only): _labelled(run, seed, budget, last_only)
        for seed in seeds
        for budget in seed.config.claim.label_budgets
        for last_only in (False, True)
        if not last_only or budget == seed.config.claim.label_budgets[-1]
    }
    work = [(seed, arm) for seed in seeds for arm in arms(seed.config)]

    def measure(entry: tuple[Seed, Arm]) -> Measurement:
        seed, arm = entry
        samples = labelled[seed.seed, arm.budget, arm.last_message_only]
        weights = seed.adapted.final if arm.adapted else seed.base.weights
        stage = _stage(seed.config, arm)
        name = f"{seed.prefix}{arm.name.replace(', ', '-').replace(' ', '-').replace('+', '')}"
        done = fine_tune(name, seed.config, run, stage, seed.base, samples, weights, frozenset())
        return Measurement(arm.name, seed.seed, _figures(done.evaluation))

    decoders = in_parallel(measure, work, at_a_time=at_a_time)
    classical = [_classical(run, seed, labelled) for seed in seeds]
    return [decoders, *classical]


def _classical(
    run: Run, seed: Seed, labelled: dict[tuple[int, int, bool], Labelled]
) -> list[Measurement]:
    measured = []
    recent = recent_template_ids(seed.conversations)
    for budget in seed.config.claim.label_budgets:
        samples = labelled[seed.seed, budget, False]
        for arm in classical_arms(seed.config, run, seed.conversations, samples, recent):
            name = arm.name.removesuffix(", full context")
            measured.append(
                Measurement(f"{name}, {budget} labels", seed.seed, _figures(arm.evaluation))
            )
    return measured


def _scaling_points(run: Run, sizes: tuple[Seed, Seed], at_a_time: int) -> list[ScalingPoint]:
    """Fine-tune from checkpoints along the adaptation of two sizes."""
    seed = sizes[0]
    budget = seed.config.claim.label_budgets[-1]
    samples = _labelled(run, seed, budget, False)
    stage = _stage(seed.config, Arm("scaling", budget, "short", True))
    work = [(one, row) for one in sizes for row in _spread_rows(one.adapted)]

    def point(entry: tuple[Seed, dict[str, float]]) -> ScalingPoint:
        one, row = entry
        step = int(row["step"])
        size = f"{one.base.decoder.width} x {one.base.decoder.layers}"
        name = f"scaling-{one.base.decoder.width}-{step}"
        done = fine_tune(
            name, one.config, run, stage, one.base, samples, one.adapted.at_step(step), frozenset()
        )
        tokens = row["tokens"]
        compute = training_compute(
            one.base.decoder, trained_tokens=tokens, seq_len=one.config.dapt.seq_len
        )
        overall = done.evaluation.overall
        return ScalingPoint(
            size=size,
            step=step,
            tokens=int(tokens),
            flops=compute.non_embedding,
            flops_full=compute.with_output_and_attention,
            lm_loss=row["eval/loss"],
            cls_loss=done.evaluation.loss,
            top1=overall.top1,
            top3=overall.top3,
            top5=overall.top5,
        )

    return in_parallel(point, work, at_a_time=at_a_time)


def _spread_rows(adapted: FitResult) -> list[dict[str, float]]:
    """Evaluations whose steps grow by a constant factor, each with the tokens seen until then.

    The loss falls with the logarithm of the steps, so these are about evenly spread over the loss.
    """
    tokens, rows = 0.0, []
    for row in adapted.history():
        if "loss" in row:
            tokens += round(row["tokens_per_s"] * row["step_s"])
        else:
            rows.append({**row, "tokens": tokens})
    first, last = (math.log(rows[place]["step"]) for place in (0, -1))
    wanted = [first + i * (last - first) / (CHECKPOINTS - 1) for i in range(CHECKPOINTS)]
    picked = [
        min(range(len(rows)), key=lambda place: abs(math.log(rows[place]["step"]) - at))
        for at in wanted
    ]
    return [rows[place] for place in dict.fromkeys(picked)]


def _stage(config: Config, arm: Arm) -> ClassifierStage:
    settings = config.claim
    place = settings.label_budgets.index(arm.budget)
    is_short = arm.schedule == "short"
    epochs = (settings.short_epochs if is_short else settings.long_epochs)[place]
    lr = settings.short_lr if is_short else settings.long_lr
    fit = config.dft.fit
    return replace(
        config.dft,
        label_budget=arm.budget,
        context=replace(config.dft.context, last_message_only=arm.last_message_only),
        fit=replace(fit, epochs=epochs, steps=None, optimizer=replace(fit.optimizer, lr=lr)),
    )


def _labelled(run: Run, seed: Seed, budget: int, last_only: bool) -> Labelled:
    stage = _stage(seed.config, Arm("", budget, "short", True, last_only))
    suffix = "-last" if last_only else ""
    name = f"{seed.prefix}labels-{budget}{suffix}"
    return label(seed.config, run, seed.base, seed.conversations, stage, name=name)


def with_seed(config: Config, seed: int) -> Config:
    simulator = replace(config.data.simulator, seed=config.data.simulator.seed + seed)
    return replace(config, seed=seed, data=replace(config.data, simulator=simulator))


def _smaller(config: Config) -> Config:
    """The same with the smaller model of the scaling report."""
    settings = config.claim
    model = replace(config.model, width=settings.second_width, layers=settings.second_layers)
    return replace(config, model=model)


def _one_worker(config: Config) -> Config:
    """One worker a training, its micro batch the whole batch, and all the snapshots we need."""

    def single(fit: FitConfig) -> FitConfig:
        return replace(fit, micro_batch=fit.batch)

    dapt_fit = replace(
        single(config.dapt.fit),
        checkpoint=replace(config.dapt.fit.checkpoint, weights_at_evaluations=True),
        evaluation=replace(config.dapt.fit.evaluation, every=_evaluation_period(config)),
    )
    general = config.general.training
    return replace(
        config,
        general=replace(config.general, training=replace(general, fit=single(general.fit))),
        dapt=replace(config.dapt, fit=dapt_fit),
        dft=replace(config.dft, fit=single(config.dft.fit)),
        resources=replace(config.resources, workers=IntRange(1, 1)),
    )


def _evaluation_period(config: Config) -> int | None:
    """Steps between evaluations of the adaptation; None where its length is given in epochs."""
    steps = config.dapt.fit.steps
    return None if steps is None else max(1, steps // EVALUATIONS)


def _key(adapted: bool, budget: int, schedule: str) -> str:
    return f"{'general + DAPT' if adapted else 'general'}, {budget} labels, {schedule}"


def _figures(evaluation: Evaluation) -> dict[str, float]:
    overall = evaluation.overall
    return {
        "top1_percent": 100 * overall.top1,
        "top3_percent": 100 * overall.top3,
        "top5_percent": 100 * overall.top5,
        "loss_nats": evaluation.loss,
        "ece": evaluation.ece,
        "calibrated_ece": evaluation.calibrated_ece,
        "test_messages": float(overall.samples),
        "out_of_map": float(evaluation.out_of_map),
    }


def _as_measurements(points: Sequence[ScalingPoint], seed: int) -> list[Measurement]:
    return [
        Measurement(
            f"scaling, {point.size}, step {point.step}",
            seed,
            {
                "dapt_tokens": point.tokens,
                "dapt_flops": point.flops,
                "dapt_loss_nats": point.lm_loss,
                "loss_nats": point.cls_loss,
                "top1_percent": 100 * point.top1,
                "top5_percent": 100 * point.top5,
            },
        )
        for point in points
    ]


def _command(config: Config) -> str:
    """What measures the same, as far as it was not another size."""
    utterances, seeds = config.data.simulator.seed_utterances, list(config.claim.seeds)
    words = [f"data.simulator.seed_utterances={Path(utterances).name}"] if utterances else []
    words += [f"claim.seeds={seeds}".replace(" ", "")] if seeds != list(ClaimConfig().seeds) else []
    return " ".join(["heliostat claim support_templates", *words])


def _row(criterion: Criterion) -> tuple[str, float, str, float, str]:
    return (
        criterion.what,
        round(criterion.measured, 3),
        criterion.relation,
        criterion.threshold,
        "yes" if criterion.holds else "NO",
    )
