"""A sweep written down: trials and evaluations as Parquet, and the best config as YAML."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from heliostat.config.dump import to_yaml
from heliostat.runs.stages import TRIALS
from heliostat.storage import Location
from heliostat.sweep.ledger import TrialRecord
from heliostat.sweep.outcome import Outcome
from heliostat.sweep.plan import SECTION, SweepPlan, spelled

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "sweep.parquet"
EVALUATIONS = "evaluations.parquet"
BEST = "best.yaml"


def write_tables(folder: Location, outcome: Outcome) -> None:
    """Write `sweep.parquet`, one row a trial, and `evaluations.parquet`, one row an evaluation."""
    _write(folder / TABLE, trial_table(folder, outcome))
    rows = [
        {"trial": record.name, "step": point.step, "index": point.index, **point.metrics}
        for record in outcome.records
        for point in record.points
    ]
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        _write(
            folder / EVALUATIONS,
            _columns({name: [row.get(name) for row in rows] for name in names}),
        )


def trial_table(folder: Location, outcome: Outcome) -> pa.Table:
    """All trials in order of merit: `values.KEY`, `metrics.NAME`, status, lineage, cost."""
    records = outcome.records
    best = outcome.best.name if outcome.best is not None else None
    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    columns: dict[str, Sequence[Any]] = {
        "trial": [record.name for record in records],
        "status": [record.status for record in records],
        "is_best": [record.name == best for record in records],
        "is_unbeaten": [record.name in outcome.front for record in records],
    }
    for key in outcome.all_keys:
        columns[f"values.{key}"] = [record.values.get(key) for record in records]
    for name in metrics:
        columns[f"metrics.{name}"] = [record.metrics.get(name) for record in records]
    columns |= {
        "member": [record.number for record in records],
        "generation": [record.generation for record in records],
        "parent": [record.parent for record in records],
        "parent_step": [record.parent_step if record.parent else None for record in records],
        "steps": [record.steps for record in records],
        "evaluations": [len(record.points) for record in records],
        "seconds": [record.seconds for record in records],
        "attempts": [record.attempts for record in records],
        "started": [record.started for record in records],
        "ended": [record.ended for record in records],
        "error": [record.error for record in records],
        "folder": [(folder / TRIALS / record.name).uri for record in records],
    }
    return _columns(columns)


def write_best(folder: Location, plan: SweepPlan, best: TrialRecord, job: str) -> Location:
    """Write the whole config of the best trial, as `heliostat train JOB --config` takes it."""
    plain = yaml.safe_load(plan.config_of(best.values).resolved_yaml)
    plain.pop(SECTION, None)
    metric = plan.settings.metric
    file = folder / BEST
    head = (
        f"# {best.name} of sweep {folder.name}: {metric} {best.value(metric):.6g} with\n"
        f"#   {spelled(best.values)}\n"
        f"# heliostat train {job} --config {BEST}\n"
    )
    file.write_text(head + to_yaml(plain))
    return file


def _columns(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.table({name: _array(list(values)) for name, values in columns.items()})


def _array(values: list[Any]) -> pa.Array:
    """Arrow's own type where the values share one; text as it would be typed where they do not."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    if len(kinds) > 1:
        return pa.array([None if value is None else str(value) for value in values])
    return pa.array(values)


def _write(file: Location, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd")
    file.write_bytes(target.getvalue())
