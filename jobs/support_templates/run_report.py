"""The report of a run: what was measured, how the trainings went, and what the data were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from heliostat.runs.calibration import plot_reliability, reliability
from heliostat.runs.inputs import Input
from heliostat.runs.plots import plot_bars
from heliostat.runs.report import Report
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.fit import FitResult
from jobs.support_templates.config import Config
from jobs.support_templates.data_report import write_data_section
from jobs.support_templates.evaluation import Evaluation
from jobs.support_templates.pipeline import (
    BEYOND_BUDGET,
    CUT_INSIDE,
    Base,
    Classifier,
    Conversations,
    Labelled,
)
from models.counting import training_compute
from models.metrics import masked_probabilities


@dataclass(frozen=True)
class Arm:
    """One line of the result table."""

    name: str
    evaluation: Evaluation
    note: str = ""


@dataclass(frozen=True)
class Adaptation:
    """What the domain adaptation cost, and where it came to."""

    loss: float
    """On held-out transcripts, nats a token."""
    tokens: float
    """Trained on."""
    flops: float
    """6 N' D, of the weights without embeddings."""
    flops_full: float
    """With output embedding and attention."""

    @property
    def metrics(self) -> dict[str, float]:
        """For `result.json`."""
        return {
            "dapt_loss": self.loss,
            "dapt_tokens": self.tokens,
            "dapt_flops": self.flops,
            "dapt_flops_full": self.flops_full,
        }


def adaptation_of(config: Config, base: Base, adapted: FitResult) -> Adaptation:
    """The figures of a finished adaptation."""
    tokens = adapted.outcome.counts["tokens"]
    compute = training_compute(base.decoder, trained_tokens=tokens, seq_len=config.dapt.seq_len)
    return Adaptation(
        loss=adapted.metrics["loss"],
        tokens=tokens,
        flops=compute.non_embedding,
        flops_full=compute.with_output_and_attention,
    )


def conversation_inputs(config: Config, conversations: Conversations) -> list[Input]:
    """Where the conversations come from, each source marked as real or generated."""
    data = config.data
    inputs = []
    if not conversations.is_generated:
        inputs.append(
            Input("conversations", "real", f"support cases of {data.cases}", "of their owner")
        )
    else:
        source = data.simulator.seed_utterances
        if source is not None:
            name = source.rsplit("/", 1)[-1]
            inputs.append(
                Input("openings", "real", f"first messages from {name}", "of their owner")
            )
        inputs.append(
            Input(
                "conversations",
                "generated",
                "simulated support chat of a payments app; no real customer"
                + (", but real openings" if source is not None else ""),
                "Apache-2.0",
            )
        )
    return inputs


def inputs_of(config: Config, base: Base, conversations: Conversations) -> list[Input]:
    """What the result rests on, each marked as real or generated."""
    inputs = conversation_inputs(config, conversations)
    if base.general is not None:
        inputs.append(
            Input(
                "general text",
                "real",
                "docstrings of the installed Python packages (stage 0)",
                "of the packages",
            )
        )
    else:
        inputs.append(Input("pretrained model", "real", config.model.source, "of its publisher"))
    return inputs


def write_report(
    config: Config,
    run: Run,
    conversations: Conversations,
    labelled: Labelled,
    arms: Sequence[Arm],
    classifier: Classifier,
    inputs: Sequence[Input],
    *,
    adaptation: Adaptation | None,
) -> Location:
    """Write the page and its figures; returns where the page is."""
    best = arms[-1].evaluation
    report = Report(
        "Reply templates: what domain adaptation is worth",
        subtitle=f"support_templates, run {run.id}",
        inputs=inputs,
    )
    report.facts(
        {
            "top-1": f"{best.overall.top1:.1%}",
            "top-3": f"{best.overall.top3:.1%}",
            "top-5": f"{best.overall.top5:.1%}",
            "templates": len(labelled.label_map),
            "test messages": best.overall.samples,
        }
    )
    report.heading("Accuracy")
    report.text(
        "The share of test messages whose template is the first, among the first three and among "
        "the first five suggested. No case of the test side was seen in any training."
    )
    report.table(*accuracy_table(arms), caption=skipped_sentence(best))
    tuned = [f"{arm.name}: {arm.note}" for arm in arms if arm.note]
    if tuned:
        report.text(f"Chosen on validation: {'; '.join(tuned)}.")
    report.figure(
        plot_bars(
            {arm.name: _percentages(arm.evaluation) for arm in arms},
            "Accuracy by arm",
            "percent of test messages",
        ),
        "Top-k accuracy of every arm.",
        "accuracy",
    )
    report.heading("Training")
    report.text(
        f"The decoder was adapted by an earlier run: {config.model.source}."
        if adaptation is None
        else f"The adaptation read {adaptation.tokens:,.0f} tokens of transcripts, which took "
        f"{adaptation.flops:.3g} FLOPs (6 N' D; {adaptation.flops_full:.3g} with output embedding "
        f"and attention), and came to {adaptation.loss:.4f} nats a token on held-out ones."
    )
    report.standard_plots(run.series())
    report.heading("Calibration")
    report.text(
        f"A temperature of {best.temperature:.3f}, fitted on validation, changes the expected "
        f"calibration error on the test side from {best.ece:.4f} to {best.calibrated_ece:.4f}. It "
        "changes no ranking."
    )
    report.figure(_reliability(classifier, labelled, best), "Reliability diagram.", "calibration")
    report.heading("Where it is right")
    report.table(
        ("messages before", "samples", "top-1", "top-3", "top-5"),
        [
            (group.group, group.samples, group.top1, group.top3, group.top5)
            for group in best.by_depth
        ],
        caption="Accuracy by depth of the conversation.",
    )
    if best.recent is not None:
        recent = best.recent
        report.text(
            f"On templates introduced in the last 30 days: top-1 {recent.top1:.1%}, top-5 "
            f"{recent.top5:.1%} over {recent.samples} messages."
        )
    ordered = sorted(best.templates, key=lambda score: score.average_precision)
    report.table(
        ("template", "samples", "average precision"),
        [(s.template_id, s.samples, s.average_precision) for s in ordered[:12]],
        caption=(
            "The twelve templates that are hardest to tell. Average precision over all templates: "
            f"macro {best.macro_average_precision:.3f}, weighted "
            f"{best.weighted_average_precision:.3f}."
        ),
    )
    write_data_section(report, conversations.redacted)
    report.heading("Configuration")
    report.code((run.folder / "config.yaml").read_text(), "The resolved config")
    return report.write(run.artefact("report"))


def accuracy_table(
    arms: Sequence[Arm],
) -> tuple[tuple[str, ...], list[tuple[str | float | None, ...]]]:
    """Header and rows of the result table, in percent."""
    columns = ("", "top-1", "top-3", "top-5", "loss", "calibration error")
    rows: list[tuple[str | float | None, ...]] = []
    for arm in arms:
        figures = arm.evaluation
        overall = figures.overall
        accuracies = [round(100 * value, 1) for value in (overall.top1, overall.top3, overall.top5)]
        rows.append(
            (arm.name, *accuracies, round(figures.loss, 3), round(figures.calibrated_ece, 3))
        )
    return columns, rows


def skipped_sentence(evaluation: Evaluation) -> str:
    """What was left out on the way, so that nothing is dropped silently."""
    parts = [
        f"{evaluation.out_of_map} test messages have a template outside the label map (misses)"
    ]
    rare = sum(1 for reason in evaluation.skipped if reason.startswith("rare: "))
    if rare:
        parts.append(f"{rare} templates were too rare for the label map")
    for reason, count in evaluation.skipped.items():
        if reason == BEYOND_BUDGET:
            parts.append(f"{count} labelled messages of training are beyond dft.label_budget")
        elif reason == CUT_INSIDE:
            parts.append(f"{count} contexts begin inside a message")
        elif not reason.startswith("rare: "):
            parts.append(f"{count} labelled messages skipped: {reason.replace('_', ' ')}")
    return "; ".join(parts) + "."


def _percentages(evaluation: Evaluation) -> Mapping[str, Sequence[float]]:
    overall = evaluation.overall
    return {
        "top-1": [100 * overall.top1],
        "top-3": [100 * overall.top3],
        "top-5": [100 * overall.top5],
    }


def _reliability(classifier: Classifier, labelled: Labelled, best: Evaluation) -> bytes:
    logits = torch.as_tensor(np.asarray(classifier.test_scores))
    labels = labelled.label_map.indices(labelled.test_rows.template_ids)
    everything = torch.ones(len(labelled.label_map), dtype=torch.bool)
    diagrams = {}
    for name, temperature in (("before", 1.0), ("after temperature scaling", best.temperature)):
        sure, choice = masked_probabilities(logits, temperature, everything).max(dim=1)
        correct = choice.numpy() == labels
        diagrams[name] = reliability(sure.tolist(), correct.tolist())
    return plot_reliability(diagrams, "Calibration on the test side")
