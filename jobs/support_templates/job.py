"""support_templates: suggest reply templates, with a decoder adapted to the domain first.

Wyatte, Tahmasbi, Li and Markovich, "Scaling Laws for Discriminative Classification in Large
Language Models", arXiv 2405.15765. The whole job is `run`, from raw cases to a bundle.
"""

from __future__ import annotations

from heliostat.cluster.fit_plan import FitPlan
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from jobs.support_templates.adapted import adapted_decoder
from jobs.support_templates.arms import classical_arms, recent_template_ids
from jobs.support_templates.bundle import save_classifier
from jobs.support_templates.claim import claim
from jobs.support_templates.config import Config
from jobs.support_templates.pipeline import fine_tune, label, open_base, open_conversations
from jobs.support_templates.plan import plan
from jobs.support_templates.run_report import (
    Arm,
    accuracy_table,
    inputs_of,
    skipped_sentence,
    write_report,
)

__all__ = ["FitPlan", "claim", "plan", "run"]


def run(config: Config, run: Run) -> RunSummary:
    """Redact and tokenise, pretrain, adapt, fine-tune, measure against baselines, save."""
    conversations = open_conversations(config, run)
    base = open_base(config, run)
    adapted, adaptation = adapted_decoder(config, run, base, conversations)
    labelled = label(config, run, base, conversations, config.dft)
    recent = recent_template_ids(conversations)

    arms = classical_arms(config, run, conversations, labelled, recent)
    if config.encoder.enabled:
        # transformers' BERT takes seconds to import and is seldom asked for.
        from jobs.support_templates.encoder_baseline import encoder_arms

        arms += encoder_arms(config, run, base, conversations, labelled, recent)
    if config.compare and not config.adapted:
        general = fine_tune(
            "dft-general", config, run, config.dft, base, labelled, base.weights, recent
        )
        arms.append(Arm("decoder, fine-tuned", general.evaluation))
    final = fine_tune("dft", config, run, config.dft, base, labelled, adapted, recent)
    arms.append(Arm("decoder, adapted to the domain, fine-tuned", final.evaluation))

    inputs = inputs_of(config, base, conversations)
    bundle = save_classifier(config, run, base, conversations, labelled, final, inputs)
    report = write_report(
        config, run, conversations, labelled, arms, final, inputs, adaptation=adaptation
    )
    spent = {} if adaptation is None else adaptation.metrics
    run.finish({**final.evaluation.metrics(), **spent})
    columns, rows = accuracy_table(arms)
    generated = ", ".join(item.name for item in inputs if item.origin == "generated") or "nothing"
    return RunSummary(
        title=f"Accuracy on {final.evaluation.overall.samples} test messages, in percent",
        columns=columns,
        rows=tuple(rows),
        paths={"report": report.uri, "bundle": bundle.uri},
        next_command=f"heliostat serve support_templates {bundle.uri}",
        notes=(f"Generated, not real: {generated}.", skipped_sentence(final.evaluation)),
    )
