"""`heliostat doctor`: is this machine, or the cluster, fit to train?"""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.screen import say
from heliostat.config.output import resolve_output
from heliostat.errors import EXIT_FAULT


def doctor(
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="PLACE", help="Also check that runs can be stored here."),
    ] = None,
) -> None:
    """Check the installation, the machine and the cluster, and say how to mend what is wrong.

    Ends with 1 when something would keep a training from working.
    """
    from heliostat.cluster.doctor import run_doctor

    findings = run_doctor(resolve_output(out).place if out is not None else None)
    for found in findings:
        say(f"{found.status:<4}  {found.name}: {found.detail}")
        if found.remedy:
            say(f"      {found.remedy}")
    failed = [found.name for found in findings if found.status == "fail"]
    if failed:
        say(f"Training will not work before this is mended: {', '.join(failed)}.")
        raise typer.Exit(EXIT_FAULT)
