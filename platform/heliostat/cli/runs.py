"""`heliostat runs`: what ran, what became of it, and how runs differ."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.arguments import RunId, RunsFolder
from heliostat.cli.complete import complete_job
from heliostat.cli.screen import say, show_table
from heliostat.config.output import DEFAULT_OUT, resolve_output
from heliostat.runs.summary import Cell

MOST_METRICS = 4
"""Metrics of a run that fit on a line of the list."""

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """List, show and compare runs."""


@app.command("list")
def list_command(
    out: RunsFolder = DEFAULT_OUT,
    job: Annotated[
        str | None,
        typer.Option("--job", help="Only the runs of this job.", autocompletion=complete_job),
    ] = None,
) -> None:
    """List the runs, the newest first."""
    from heliostat.runs.listing import list_runs

    place = resolve_output(out).place
    rows = list_runs(place, job)
    if not rows:
        say(f"There are no runs in {place.uri}.")
        return
    show_table(
        None,
        ("run", "job", "status", "created", "minutes", "metrics"),
        [
            (row.id, row.job, row.status, row.created, row.seconds / 60, _brief(row.metrics))
            for row in rows
        ],
    )


@app.command()
def show(run: RunId, out: RunsFolder = DEFAULT_OUT) -> None:
    """Show one run: status, attempts, stages, final metrics."""
    from heliostat.runs.listing import show_run

    detail = show_run(resolve_output(out).place, run)
    row, record = detail.row, detail.record
    say(f"run {row.id}: {row.status}, job {row.job}, {row.seconds / 60:.1f} minutes of work")
    say(f"folder {row.folder.uri}")
    if record.stages:
        stages = [
            (name, stage.status, stage.seconds, stage.attempts)
            for name, stage in record.stages.items()
        ]
        show_table("stages", ("stage", "status", "seconds", "attempts"), stages)
    attempts = [
        (attempt.number, attempt.status, attempt.started, attempt.seconds, attempt.error)
        for attempt in record.attempts
    ]
    show_table("attempts", ("attempt", "status", "started", "seconds", "error"), attempts)
    if row.metrics:
        show_table("metrics", ("metric", "value"), list(row.metrics.items()))


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more, by name.")
    ],
    out: RunsFolder = DEFAULT_OUT,
) -> None:
    """Compare runs: the config keys and final metrics in which they differ."""
    from heliostat.runs.listing import compare_runs

    comparison = compare_runs(resolve_output(out).place, runs)
    columns = ("", *comparison.ids)
    for title, differences in (("config", comparison.config), ("metrics", comparison.metrics)):
        if differences:
            rows = [(row.key, *(_cell(value) for value in row.values)) for row in differences]
            show_table(title, columns, rows)
        else:
            say(f"{title}: no difference")


def _brief(metrics: dict[str, float | None]) -> str:
    """The first metrics on one line."""
    shown = [
        f"{name} {value:.4g}"
        for name, value in list(metrics.items())[:MOST_METRICS]
        if value is not None
    ]
    return ", ".join(shown)


def _cell(value: object) -> Cell:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
