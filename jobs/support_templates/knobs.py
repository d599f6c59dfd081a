"""A trained bundle measured on validation under the knobs of a config, without training it.

The knobs are the context window, the temperature and the probability below which nothing is
suggested. How messages are written and joined stays as the bundle was trained.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from heliostat.runs.bundle import load_bundle
from heliostat.sweep.contract import Trial
from jobs.support_templates.bundle import KIND, TemplateClassifier, open_classifier
from jobs.support_templates.config import Config
from jobs.support_templates.pipeline import open_conversations
from jobs.support_templates.preparation import labelled_samples
from models.metrics import (
    expected_calibration_error,
    label_ranks,
    masked_probabilities,
    negative_log_likelihood,
    ranking,
)

BUNDLE_METRICS = (
    "top1", "top3", "top5", "loss", "calibration_error", "shown", "answered", "latency_ms",
)  # fmt: skip
SUGGESTIONS = 5
BATCH = 32
PAD_TO = 16
TIMED_CONTEXTS = 40


def measure_bundle(config: Config, trial: Trial) -> Mapping[str, float]:
    """The figures of the bundle on the validation side under the config's knobs.

    A template outside the label map is a miss. A suggestion below the threshold is not shown, so it
    is no hit either: accuracy falls as the list gets shorter, and `shown` says how short.
    """
    classifier = open_classifier(load_bundle(trial.bundle, KIND))
    context = classifier.with_window(config.suggest.max_tokens).context
    table = labelled_samples(
        open_conversations(config, trial.run).redacted,
        "validation",
        classifier.codec,
        context,
        trial.run.cache,
        config.data.preparation_workers,
    )
    tokens: list[list[int]] = table.column("tokens").to_pylist()
    labels = torch.from_numpy(classifier.label_map.indices(table.column("template_id").to_pylist()))
    logits, latency_ms = scores(classifier, tokens)
    temperature = config.suggest.temperature or classifier.temperature
    figures = suggestion_figures(logits, labels, temperature, config.suggest.min_probability)
    return {**figures, "latency_ms": latency_ms}


def suggestion_figures(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float, threshold: float
) -> dict[str, float]:
    """Accuracy, loss, calibration, and how much is shown.

    Args:
        logits: [B, C].
        labels: [B]; negative where the template is outside the label map.
        temperature: divides the logits.
        threshold: probability below which nothing is suggested.
    """
    everything = torch.ones(logits.shape[1], dtype=torch.bool)
    probabilities = masked_probabilities(logits, temperature, everything)
    known = labels >= 0
    # The place in the list does not depend on the temperature, so it is that of the logits.
    ranks = torch.where(known, label_ranks(logits, labels.clamp(min=0)), logits.shape[1])
    chance = probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    is_shown = known & (chance >= threshold)
    best = ranking(probabilities, SUGGESTIONS)
    confidence = probabilities.gather(1, best)
    shown = (confidence >= threshold).sum(dim=1)
    hits = {f"top{k}": float(((ranks < k) & is_shown).double().mean()) for k in (1, 3, 5)}
    return {
        **hits,
        "loss": negative_log_likelihood(logits[known], labels[known], temperature),
        "calibration_error": expected_calibration_error(confidence[:, 0], best[:, 0] == labels),
        "shown": float(shown.double().mean()),
        "answered": float((shown > 0).double().mean()),
    }


def scores(classifier: TemplateClassifier, tokens: list[list[int]]) -> tuple[torch.Tensor, float]:
    """Logits of each context, [B, C], and the median time of one context alone, milliseconds."""
    rows = [np.asarray(context, dtype=np.int64) for context in tokens]
    with torch.inference_mode():
        parts = [
            _forward(classifier, rows[start : start + BATCH])
            for start in range(0, len(rows), BATCH)
        ]
        times = []
        for row in rows[:TIMED_CONTEXTS]:
            began = time.perf_counter()
            _forward(classifier, [row])
            times.append(1000 * (time.perf_counter() - began))
    return torch.cat(parts), statistics.median(times)


def _forward(classifier: TemplateClassifier, rows: list[NDArray[np.int64]]) -> torch.Tensor:
    width = -(-max(map(len, rows)) // PAD_TO) * PAD_TO
    codec = classifier.codec
    pad = codec.pad if codec.pad is not None else codec.end_of_text
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = True
    logits: torch.Tensor = classifier.model(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
    )
    return logits.float()
