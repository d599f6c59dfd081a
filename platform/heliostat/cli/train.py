"""`heliostat train`: run a job."""

from __future__ import annotations

from heliostat.cli.arguments import ConfigFiles, JobName, Overrides, RunName
from heliostat.cli.execute import Request, execute


def train(
    job: JobName, overrides: Overrides = None, config: ConfigFiles = None, run: RunName = None
) -> None:
    """Train a job: prepare data, fit, evaluate, save the bundle.

    Without --run it starts a fresh run; with --run NAME it starts that run or goes on with it, if
    the config is the same (resources, tracker, out, serve and generation may differ).

    Examples:

      heliostat train support_templates

      heliostat train support_templates size=laptop dft.fit.epochs=4 --run nightly
    """
    execute(Request("train", "run", job, overrides or (), config or (), run))
