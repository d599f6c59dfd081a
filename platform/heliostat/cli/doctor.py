"""`heliostat doctor`: is this machine, or the cluster, fit to train?"""

from __future__ import annotations

import typer

from heliostat.cli.screen import say, show_table
from heliostat.errors import EXIT_FAULT


def doctor() -> None:
    """Check the installation, the machine and the cluster; says what to do about what is wrong.

    Ends with 1 when something stands in the way of training.
    """
    from heliostat.cluster.doctor import run_doctor

    checks = run_doctor()
    show_table(
        None,
        ("check", "result", "found", "what to do"),
        [(check.name, check.status, check.detail, check.remedy) for check in checks],
    )
    if any(check.status == "problem" for check in checks):
        say("Something stands in the way of training.")
        raise typer.Exit(EXIT_FAULT)
