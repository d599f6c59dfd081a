"""What can be swept: adaptation, fine-tuning on one adapted decoder, and knobs of a bundle.

adapt       stage 1 under other keys of `dapt`, judged by the language-modelling loss, which
            predicts the classification loss (Wyatte et al., figure 3)
fine_tune   stage 2 under other keys of `dft`; all trials read the same adapted decoder
measure     a trained bundle under other windows, temperatures and thresholds, on validation
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from heliostat.data.stream import RowStream
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.sweep.contract import Shared, Trial, TrialKind
from heliostat.train.weights import load_weights
from jobs.support_templates.adapted import adapted_decoder
from jobs.support_templates.config import RANDOM_WEIGHTS, Config
from jobs.support_templates.knobs import BUNDLE_METRICS, measure_bundle
from jobs.support_templates.pipeline import (
    Base,
    classification,
    domain_task,
    general_documents,
    label,
    open_base,
    open_conversations,
    pretrained_base,
)
from jobs.support_templates.run_report import conversation_inputs, inputs_of
from jobs.support_templates.tasks import TemplateClassification

TIMED_CONTEXTS = 40
"""Contexts classified one at a time for the latency."""
TIMED_S = 10.0
"""No longer than that: the process of a trial has no GPU."""


def prepare(config: Config, run: Run) -> Shared:
    """Conversations, and the decoder before it has seen the domain."""
    conversations = open_conversations(config, run)
    base = open_base(config, run)
    values = {"tokenizer": _tokenizer(config, run).uri, "base": base.weights.uri}
    return Shared(inputs_of(config, base, conversations), values)


def prepare_adapted(config: Config, run: Run) -> Shared:
    """The same, and one adaptation that all trials begin with."""
    conversations = open_conversations(config, run)
    base = open_base(config, run)
    adapted, _ = adapted_decoder(config, run, base, conversations)
    values = {"tokenizer": _tokenizer(config, run).uri, "adapted": adapted.uri}
    return Shared(inputs_of(config, base, conversations), values)


def prepare_conversations(config: Config, run: Run) -> Shared:
    """The conversations, redacted once."""
    return Shared(conversation_inputs(config, open_conversations(config, run)))


def adaptation(config: Config, trial: Trial) -> Mapping[str, float]:
    """One adaptation."""
    conversations = open_conversations(config, trial.run)
    base = _base(config, trial, "base")
    task = domain_task(config, trial.run, base, conversations)
    adapted = trial.fit(task, config.dapt.fit, resources=config.resources, start_from=base.weights)
    return {"loss": adapted.metrics["loss"], "tokens": adapted.outcome.counts["tokens"]}


def fine_tuning(config: Config, trial: Trial) -> Mapping[str, float]:
    """One fine-tuning, measured on validation."""
    conversations = open_conversations(config, trial.run)
    base = _base(config, trial, "adapted")
    labelled = label(config, trial.run, base, conversations, config.dft)
    task = classification("dft", config, config.dft, base, labelled, base.weights)
    trained = trial.fit(task, config.dft.fit, resources=config.resources)
    return {**trained.metrics, "latency_ms": latency_ms(task, trained.final)}


def latency_ms(task: TemplateClassification, weights: Location) -> float:
    """Median time of one context through the classifier, milliseconds; other trials compete."""
    model = task.model()
    load_weights(model, weights)
    model.eval()
    stream = RowStream(task.validation, seed=0, shuffle=False)
    times = []
    with torch.inference_mode():
        for position in range(min(TIMED_CONTEXTS, stream.epoch_size)):
            batch = task.collate(stream.samples([position]))
            began = time.perf_counter()
            task.logits(model, batch)
            times.append(1000 * (time.perf_counter() - began))
            if sum(times) > 1000 * TIMED_S:
                break
    return statistics.median(times)


def _tokenizer(config: Config, run: Run) -> Location:
    """Where the tokenizer of stage 0 is; with a checkpoint nobody looks there."""
    if config.model.source != RANDOM_WEIGHTS:
        return run.folder
    return general_documents(config, run)


def _base(config: Config, trial: Trial, weights: str) -> Base:
    places = {name: Location.of(str(value)) for name, value in trial.shared.items()}
    return pretrained_base(config, trial.run, places["tokenizer"], places[weights])


TRIALS = {
    "adapt": TrialKind(
        shared=prepare,
        trial=adaptation,
        keys=("dapt",),
        metrics=("loss", "tokens"),
        evaluations=("loss",),
    ),
    "fine_tune": TrialKind(
        shared=prepare_adapted,
        trial=fine_tuning,
        keys=("dft",),
        metrics=("top1", "top3", "top5", "loss", "latency_ms"),
        evaluations=("top1", "top3", "top5", "loss"),
    ),
    "measure": TrialKind(
        shared=prepare_conversations,
        trial=measure_bundle,
        keys=("suggest.max_tokens", "suggest.temperature", "suggest.min_probability"),
        metrics=BUNDLE_METRICS,
        uses_bundle=True,
        is_served=True,
    ),
}
