"""mla_moe: a language model with latent attention and a mixture of experts, from text to bundle.

DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, and "DeepSeek-V3", arXiv 2412.19437. The whole job is
`run`.
"""

from __future__ import annotations

from heliostat.cluster.fit_plan import FitPlan
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from jobs.mla_moe.bundle import save_language_model
from jobs.mla_moe.claim import claim
from jobs.mla_moe.config import Config
from jobs.mla_moe.data import open_corpus
from jobs.mla_moe.pipeline import train
from jobs.mla_moe.plan import plan
from jobs.mla_moe.run_report import result_table, write_report
from jobs.mla_moe.source import open_source

__all__ = ["FitPlan", "claim", "plan", "run"]


def run(config: Config, run: Run) -> RunSummary:
    """Prepare the text, train, measure, save, report."""
    start = open_source(config, run)
    corpus = open_corpus(config, run)
    trained = train(config, run, corpus, start_from=None if start is None else start.weights)
    inputs = corpus.inputs if start is None else (*corpus.inputs, start.origin)
    tokens = None if start is None else start.tokens
    bundle = save_language_model(config, run, corpus, trained, inputs, tokens=tokens)
    report = write_report(config, run, trained, inputs)
    run.finish(trained.evaluation.metrics())
    columns, rows = result_table(config, trained)
    return RunSummary(
        title=f"Measured on {trained.evaluation.tokens:,} tokens that were never trained on",
        columns=columns,
        rows=tuple(rows),
        paths={"report": report.uri, "bundle": bundle.uri},
        next_command=f"heliostat serve mla_moe {bundle.uri}",
    )
