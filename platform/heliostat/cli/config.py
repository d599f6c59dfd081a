"""`heliostat config show`: the config a command would run with."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.arguments import ConfigFiles, JobName, Overrides
from heliostat.cli.screen import say
from heliostat.config.explain import annotated_yaml
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Look at a job's config."""


@app.command()
def show(
    job: JobName,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Plain YAML, to be given back with --config.")
    ] = False,
) -> None:
    """Print every key with its value, where the value came from, and what it means.

    Example:

      heliostat config show support_templates size=laptop
    """
    loaded = load_config(find_job(job), None, overrides or (), config or ())
    if resolved:
        say(loaded.resolved_yaml.rstrip())
    else:
        say(f"# job {job}, size {loaded.size}, config {loaded.digest[:6]}")
        say(annotated_yaml(loaded).rstrip())
