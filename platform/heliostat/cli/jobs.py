"""`heliostat jobs`: what there is to run."""

from __future__ import annotations

from heliostat.cli.screen import say, show_table
from heliostat.config.jobs import find_jobs
from heliostat.config.layers import shown_path
from heliostat.config.load import LAPTOP


def jobs() -> None:
    """List the jobs that can be named here, with their sizes."""
    found = find_jobs()
    if not found:
        say("There are no jobs: go to a folder that has jobs/, or install a package of jobs.")
        return
    rows = []
    for name, job in found.items():
        sizes = ", ".join(dict.fromkeys((LAPTOP, *job.sizes())))
        rows.append((name, sizes, job.summary, shown_path(job.folder)))
    show_table(None, ("job", "sizes", "what it is", "where"), rows)
