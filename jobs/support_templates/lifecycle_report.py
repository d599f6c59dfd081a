"""Whether it is time to train again, from the events that the endpoint keeps.

The out-of-map rate counts every selection. Accuracy is that of one version in the holdout, where
nobody saw a suggestion, so that none could have influenced the choice; with few selections there it
is left open, because a fall of three points is then only noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta

from heliostat.serve.events import EventLog
from jobs.support_templates.events import FEEDBACK, HOLDOUT, PREDICTION
from jobs.support_templates.label_map import LabelMap
from jobs.support_templates.lifecycle import RetrainConfig, new_templates, retrain_signal

K = 5
SUGGESTED_BEFORE = timedelta(days=1)
"""How long before its feedback a suggestion was made, at most."""


def lifecycle_report(
    log: EventLog,
    label_map: LabelMap,
    *,
    model_version: str,
    top5_at_release: float | None,
    now: datetime,
    config: RetrainConfig,
) -> Mapping[str, object]:
    """The figures of the last days, and whether to train again; JSON."""
    since = now - timedelta(days=config.window_days)
    selections: dict[str, tuple[datetime, str]] = {
        row.id: (row.at, str(row.body["chosen_template_id"]))
        for row in log.rows(FEEDBACK, since)
        if row.body["chosen_template_id"] is not None
    }
    hits: list[bool] = []
    for row in log.rows(PREDICTION, since - SUGGESTED_BEFORE):
        if row.id not in selections or row.body["cohort"] != HOLDOUT:
            continue
        ranking = row.body["template_ids"]
        assert isinstance(ranking, list)
        if row.body["model_version"] == model_version:
            hits.append(selections[row.id][1] in ranking[:K])
    is_enough = len(hits) >= config.min_holdout_selections
    signal = retrain_signal(
        selections.values(),
        label_map,
        now=now,
        top5=sum(hits) / len(hits) if is_enough else None,
        top5_at_release=top5_at_release,
        config=config,
    )
    chosen = [template_id for _, template_id in selections.values()]
    return {
        "model_version": model_version,
        "window_days": config.window_days,
        **asdict(signal),
        "holdout_selections": len(hits),
        "new_templates": dict(new_templates(chosen, label_map)),
        "should_retrain": signal.should_retrain,
    }
