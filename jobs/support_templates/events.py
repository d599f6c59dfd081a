"""What serving writes down: predictions, and the feedback of advocates, as Arrow schemas.

Both logs are append-only. A prediction is logged in the holdout too, where nobody sees it, so that
accuracy can be measured without influencing the choice. Neither log holds message text. `joined`
turns the two logs into template selections, counting whatever it leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from heliostat.errors import DataError

PREDICTION, FEEDBACK = "prediction", "feedback"
"""Kinds of events in the endpoint's log."""
TREATMENT = "treatment"
HOLDOUT = "holdout"

_TIME = pa.timestamp("us", tz="UTC")

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("suggestion_id", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("advocate_id", pa.string()),
        pa.field("cohort", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("label_map_version", pa.string(), nullable=False),
        pa.field("template_ids", pa.list_(pa.string()), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("abstained", pa.bool_(), nullable=False),
    ]
)
"""One row a prediction; `template_ids` is the ranking before abstention, the best first."""

FEEDBACK_SCHEMA = pa.schema(
    [
        pa.field("suggestion_id", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
        pa.field("chosen_template_id", pa.string()),
        pa.field("selection_time_ms", pa.int64(), nullable=False),
        pa.field("edited", pa.bool_(), nullable=False),
    ]
)
"""One row a feedback; no chosen template means that the advocate wrote the reply."""


@dataclass(frozen=True)
class EventCounts:
    """What the two logs hold and what was left out of the selections."""

    predictions: int
    feedback: int
    repeated_predictions: int
    """Second and later predictions under one suggestion id; the first counts."""
    repeated_feedback: int
    """Second and later feedback for one suggestion; the first counts."""
    unknown_suggestions: int
    """Feedback for suggestions that the prediction log does not hold."""
    no_template_chosen: int
    selections: int


@dataclass(frozen=True)
class Selections:
    """Template selections as columns of equal length, in order of the feedback log."""

    at: NDArray[np.datetime64]
    """When the prediction was made, UTC."""
    week: NDArray[np.str_]
    """ISO week of `at`, such as 2026-W05."""
    is_held_out: NDArray[np.bool_]
    model_version: NDArray[np.str_]
    template_id: NDArray[np.str_]
    seconds: NDArray[np.float64]
    """Time that the selection took."""
    is_hit: NDArray[np.bool_]
    """The chosen template was among the first k of the ranking."""


def joined(predictions: pa.Table, feedback: pa.Table, *, k: int) -> tuple[Selections, EventCounts]:
    """The template selections that both logs describe."""
    predictions = _checked(predictions, PREDICTION_SCHEMA, "prediction")
    feedback = _checked(feedback, FEEDBACK_SCHEMA, "feedback")
    unknown_cohorts = set(pc.unique(predictions["cohort"]).to_pylist()) - {TREATMENT, HOLDOUT}
    if unknown_cohorts:
        raise DataError(
            f"the prediction log holds cohorts {sorted(unknown_cohorts)}: expected {TREATMENT} or "
            f"{HOLDOUT}"
        )
    if len(feedback) and pc.min(feedback["selection_time_ms"]).as_py() < 0:
        raise DataError("the feedback log holds a negative selection_time_ms")
    first = _first_rows(feedback["suggestion_id"])
    distinct = feedback.take(first)
    is_known = pc.is_in(distinct["suggestion_id"], value_set=predictions["suggestion_id"])
    known = distinct.filter(is_known)
    chosen = known.filter(pc.is_valid(known["chosen_template_id"]))
    rows = pc.index_in(chosen["suggestion_id"], value_set=predictions["suggestion_id"])
    selections = _selections(predictions.take(rows), chosen, k)
    counts = EventCounts(
        predictions=len(predictions),
        feedback=len(feedback),
        repeated_predictions=len(predictions) - len(pc.unique(predictions["suggestion_id"])),
        repeated_feedback=len(feedback) - len(distinct),
        unknown_suggestions=len(distinct) - len(known),
        no_template_chosen=len(known) - len(chosen),
        selections=len(chosen),
    )
    return selections, counts


def _selections(predicted: pa.Table, chosen: pa.Table, k: int) -> Selections:
    calendar = pc.iso_calendar(predicted["at"]).combine_chunks()
    year, week = (calendar.field(name).to_pylist() for name in ("iso_year", "iso_week"))
    template_id = _strings(chosen["chosen_template_id"])
    return Selections(
        at=predicted["at"].to_numpy(),
        week=np.array([f"{y}-W{w:02d}" for y, w in zip(year, week, strict=True)], dtype=np.str_),
        is_held_out=_strings(predicted["cohort"]) == HOLDOUT,
        model_version=_strings(predicted["model_version"]),
        template_id=template_id,
        seconds=chosen["selection_time_ms"].to_numpy() / 1000.0,
        is_hit=_hits(predicted["template_ids"], template_id, k),
    )


def _hits(rankings: pa.ChunkedArray, chosen: NDArray[np.str_], k: int) -> NDArray[np.bool_]:
    heads = pc.list_slice(rankings, 0, k)
    owner = pc.list_parent_indices(heads).to_numpy()
    matches = _strings(pc.list_flatten(heads)) == chosen[owner]
    return np.bincount(owner[matches], minlength=len(chosen)).astype(np.bool_)


def _first_rows(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """The row of each id's first appearance, in order."""
    rows = pc.index_in(pc.unique(ids), value_set=ids).to_numpy(zero_copy_only=False)
    return np.asarray(rows, dtype=np.int64)


def _strings(column: pa.ChunkedArray | pa.Array) -> NDArray[np.str_]:
    return np.array(column.to_pylist(), dtype=np.str_)


def _checked(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    missing = [field for field in schema.names if field not in table.schema.names]
    if missing:
        raise DataError(f"the {name} log has no column {missing[0]!r}: expected {schema.names}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(f"the {name} log does not fit its schema: {error}") from error
