"""The analysis of the online logs as a report: `python -m jobs.support_templates.analysis`.

Reads the append-only events of the endpoint and writes one page: the
selection time with and without suggestions by week, comparisons of model versions, and whether
templates that are predicted better save more time. The statistics are in `online.py`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from heliostat.errors import DataError, UserError
from heliostat.runs.inputs import Input
from heliostat.runs.report import Report
from heliostat.serve.events import EventLog
from heliostat.storage import Location
from jobs.support_templates.events import (
    FEEDBACK,
    FEEDBACK_SCHEMA,
    PREDICTION,
    PREDICTION_SCHEMA,
)
from jobs.support_templates.online import (
    AnalysisConfig,
    OnlineReport,
    Row,
    VersionPair,
    analyse,
    saved_time_rows,
    template_rows,
    version_rows,
)


def write_analysis(report: OnlineReport, folder: Location) -> Location:
    """Write the page; returns where it is."""
    page = Report(
        "What the suggestions save",
        subtitle="support_templates, online analysis",
        inputs=[
            Input("logs", "real", "predictions and feedback of the endpoint", "of their owner")
        ],
    )
    overall = report.overall.comparison
    if overall is not None:
        page.facts(
            {
                "seconds saved": round(overall.difference, 2),
                "interval": f"{overall.low:.2f} to {overall.high:.2f}",
                "selections": report.counts.selections,
            }
        )
    page.heading("Selection time by week")
    page.text("Holdout against treatment; Welch's interval for the difference of the means.")
    _table(page, saved_time_rows(report))
    if report.versions:
        page.heading("Model versions")
        _table(page, version_rows(report))
    page.heading("Templates")
    if report.trend is not None:
        page.text(
            f"Mann-Kendall trend of seconds saved with accuracy: Z = {report.trend.z:.3f}, "
            f"p = {report.trend.p:.3g}, over {len(report.templates)} templates; "
            f"{report.templates_left_out} left out for too few holdout selections."
        )
    _table(page, template_rows(report))
    page.heading("What was counted")
    page.table(("what", "rows"), list(asdict(report.counts).items()))
    return page.write(folder)


def read_log(place: str) -> tuple[pa.Table, pa.Table]:
    """Predictions and feedback of the endpoint's events, as tables of their schemas."""
    if "://" not in place and not Path(place).is_file():
        raise DataError(f"{place} does not exist; expected the events of an endpoint")
    log = EventLog(place)
    try:
        return (
            _table_of(log, PREDICTION, PREDICTION_SCHEMA),
            _table_of(log, FEEDBACK, FEEDBACK_SCHEMA),
        )
    finally:
        log.close()


def _table_of(log: EventLog, kind: str, schema: pa.Schema) -> pa.Table:
    rows = [{**row.body, "suggestion_id": row.id, "at": row.at} for row in log.rows(kind)]
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the {kind} events are not those of this endpoint: {error}") from error


def main(
    events: Annotated[str, typer.Argument(help="The endpoint's events: a file or a URL.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("analysis"),
    compare: Annotated[
        list[str] | None,
        typer.Option(help="OLD,NEW,START: versions to compare over two weeks from START."),
    ] = None,
) -> None:
    """Analyse the online logs of support_templates and write a report."""
    try:
        report = analyse(
            *read_log(events),
            pairs=[parse_pair(text) for text in compare or ()],
            config=AnalysisConfig(),
        )
        page = write_analysis(report, Location.of(out))
    except UserError as error:
        typer.echo(f"heliostat: {error}", err=True)
        sys.exit(error.exit_code)
    typer.echo(f"report: {page.uri}")


def parse_pair(text: str) -> VersionPair:
    """`OLD,NEW,START` as a pair of versions."""
    parts = text.split(",")
    try:
        old, new, start = parts
        return VersionPair(old, new, datetime.fromisoformat(start))
    except ValueError as error:
        raise DataError(
            f"--compare {text!r}: expected OLD,NEW,START such as 3f2a,9c41,2026-03-01T00:00+00:00"
        ) from error


def _table(page: Report, rows: list[Row]) -> None:
    if rows:
        page.table(tuple(rows[0]), [tuple(row.values()) for row in rows])


if __name__ == "__main__":
    typer.run(main)
