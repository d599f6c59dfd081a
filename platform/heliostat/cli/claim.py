"""`heliostat claim`: measure what a job promises."""

from __future__ import annotations

from heliostat.cli.arguments import ConfigFiles, JobName, Overrides, RunName
from heliostat.cli.execute import Request, execute


def claim(
    job: JobName, overrides: Overrides = None, config: ConfigFiles = None, run: RunName = None
) -> None:
    """Measure a job's claim: method and baselines over several seeds, and whether it holds.

    Example:

      heliostat claim support_templates
    """
    execute(Request("claim", "claim", job, overrides or (), config or (), run))
