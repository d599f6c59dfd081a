"""Whether it is time to train again, from the events that the endpoint keeps.

The out-of-map rate counts every selection; feedback for suggestions that were never made is counted
apart, and counts for nothing else. Accuracy is that of one version in the holdout, where nobody saw
a suggestion, so that none could have influenced the choice; with few selections there it is left
open, because a fall of three points is then only noise.
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
    selections: list[tuple[datetime, str]] = []
    hits: list[bool] = []
    unknown = 0
    for row, suggestion in log.answers(FEEDBACK, PREDICTION, since):
        if suggestion is None:
            unknown += 1
            continue
        if row.body["chosen_template_id"] is None:
            continue
        chosen = str(row.body["chosen_template_id"])
        selections.append((row.at, chosen))
        if suggestion["cohort"] == HOLDOUT and suggestion["model_version"] == model_version:
            ranking = suggestion["template_ids"]
            assert isinstance(ranking, list)
            hits.append(chosen in ranking[:K])
    is_enough = len(hits) >= config.min_holdout_selections
    signal = retrain_signal(
        selections,
        label_map,
        now=now,
        top5=sum(hits) / len(hits) if is_enough else None,
        top5_at_release=top5_at_release,
        config=config,
    )
    return {
        "model_version": model_version,
        "window_days": config.window_days,
        **asdict(signal),
        "holdout_selections": len(hits),
        "unknown_suggestions": unknown,
        "new_templates": dict(new_templates((one for _, one in selections), label_map)),
        "should_retrain": signal.should_retrain,
    }
