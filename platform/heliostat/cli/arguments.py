"""The arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heliostat.cli.complete import complete_job, complete_override

JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="A job's name; `heliostat jobs` lists them.",
        autocompletion=complete_job,
    ),
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[size=SIZE] [KEY=VALUE]...",
        help="A size of the job, and config keys: dapt.fit.batch=64, seeds=[0,1], clip=null.",
        autocompletion=complete_override,
    ),
]

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A YAML file laid over the job's config; may be given several times.",
    ),
]

RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Start the run NAME, or go on with it where it stopped.",
    ),
]

RunsFolder = Annotated[
    str,
    typer.Option("--out", metavar="PLACE", help="Folder or URI that holds the runs."),
]

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or the beginning of it.")]
