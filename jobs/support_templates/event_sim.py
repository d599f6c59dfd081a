"""Plausible prediction and feedback logs with a known truth, to test the online analysis with.

Templates have Zipf volume and each its own accuracy. Choosing a template that is not suggested
takes about 19 seconds, choosing one from the suggestions about 9, with log-normal noise; so better
predicted templates save more, and a more accurate version saves more than its predecessor. The
holdout is assigned by the hash that serving uses. A simulation, not a model of real advocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.support_templates.events import (
    FEEDBACK_SCHEMA,
    HOLDOUT,
    PREDICTION_SCHEMA,
    TREATMENT,
)
from jobs.support_templates.split import is_held_out


@dataclass(frozen=True)
class EventSimConfig:
    """What the simulated logs look like."""

    seed: int = 0
    predictions: int = 20_000
    days: int = 28
    """Length of the logs, days; predictions are spread evenly."""
    start: datetime = datetime(2026, 1, 5, tzinfo=UTC)
    templates: int = 60
    advocates: int = 50
    predictions_per_case: int = 4
    holdout_per_10_000: int = 200
    salt: str = "simulation"
    gain: float = 0.1
    """Accuracy that the new version adds to the old one's; cases alternate between the two."""
    searching_s: float = 19.0
    """Mean time to find a template that is not suggested."""
    suggested_s: float = 9.0
    """Mean time to choose one of the suggestions."""
    spread: float = 0.5
    """Standard deviation of the logarithm of a time."""
    free_text_share: float = 0.1
    """Share of feedback without a template."""


OLD_VERSION, NEW_VERSION = "v1", "v2"


def simulated_events(config: EventSimConfig) -> tuple[pa.Table, pa.Table]:
    """A prediction log and a feedback log, one feedback for each prediction."""
    random, n = np.random.default_rng(config.seed), config.predictions
    case = np.arange(n) // config.predictions_per_case
    case_ids = [f"case-{c}" for c in case]
    advocates = [f"advocate-{c % config.advocates}" for c in case]
    is_held = np.array(
        [
            is_held_out(a, c, config.salt, config.holdout_per_10_000)
            for a, c in zip(advocates, case_ids, strict=True)
        ]
    )
    is_new = case % 2 == 1
    volume = 1.0 / np.arange(1, config.templates + 1)
    template = random.choice(config.templates, size=n, p=volume / volume.sum())
    accuracy = random.permutation(np.linspace(0.25, 0.85, config.templates))
    is_hit = random.random(n) < accuracy[template] + config.gain * is_new
    mean = np.where(is_hit & ~is_held, config.suggested_s, config.searching_s)
    seconds = mean * random.lognormal(-(config.spread**2) / 2, config.spread, size=n)
    chosen = _names(template)
    chosen[random.random(n) < config.free_text_share] = None
    at = [config.start + i * timedelta(days=config.days) / n for i in range(n)]
    ids = [f"suggestion-{i}" for i in range(n)]
    predictions = {
        "suggestion_id": ids,
        "at": at,
        "case_id": case_ids,
        "advocate_id": advocates,
        "cohort": np.where(is_held, HOLDOUT, TREATMENT).tolist(),
        "model_version": np.where(is_new, NEW_VERSION, OLD_VERSION).tolist(),
        "label_map_version": ["simulated"] * n,
        "template_ids": _rankings(template, is_hit, config.templates, random),
        "probabilities": [[0.4, 0.2, 0.1, 0.05, 0.02]] * n,
        "abstained": [False] * n,
    }
    feedback = {
        "suggestion_id": ids,
        "at": [moment + timedelta(seconds=s) for moment, s in zip(at, seconds, strict=True)],
        "chosen_template_id": chosen.tolist(),
        "selection_time_ms": np.round(seconds * 1000).astype(np.int64),
        "edited": (random.random(n) < 0.2).tolist(),
    }
    return (
        pa.table(predictions, schema=PREDICTION_SCHEMA),
        pa.table(feedback, schema=FEEDBACK_SCHEMA),
    )


def _names(template: NDArray[np.int64]) -> NDArray[np.object_]:
    return np.array([f"template-{t:03d}" for t in template], dtype=object)


def _rankings(
    template: NDArray[np.int64],
    is_hit: NDArray[np.bool_],
    templates: int,
    random: np.random.Generator,
) -> list[list[str]]:
    """Five neighbours of the right template, which takes a random place among them on a hit."""
    others = (template[:, None] + np.arange(1, 6)) % templates
    place = random.integers(0, 5, size=len(template))
    others[is_hit, place[is_hit]] = template[is_hit]
    return [_names(row).tolist() for row in others]
