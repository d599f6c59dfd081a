"""`heliostat estimate`: what a job will take, before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.cli.arguments import ConfigFiles, JobName, Overrides
from heliostat.cli.screen import console, say
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.config.settings import settings
from heliostat.errors import ConfigError

if TYPE_CHECKING:
    from heliostat.cluster.resources import ClusterResources

DEFAULT_UTILISATION = 0.4
"""Share of a device's stated rate that training usually reaches."""


def estimate(
    job: JobName,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FILE",
            help="Reckon with this cluster: nodes=4,cpus=96,gpus=8,memory=1000GB,device=H100, or a "
            "`ray up` or KubeRay YAML file. Without it: the cluster at RAY_ADDRESS, else this "
            "machine.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="GPU", help="The GPU to reckon with, such as H100.")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the device's rate that is reached.")
    ] = DEFAULT_UTILISATION,
) -> None:
    """Estimate memory, operations, time, disk and place of a job's trainings; starts nothing.

    Example:

      heliostat estimate support_templates size=laptop --cluster cpus=96,gpus=8,device=H100
    """
    entry = find_job(job)
    loaded = load_config(entry, None, overrides or (), config or ())
    plan = getattr(entry.code(), "plan", None)
    if not callable(plan):
        raise ConfigError(f"job {job} has no plan() in its job.py")

    from heliostat.cluster.estimate import estimate as reckon
    from heliostat.cluster.estimate_view import format_estimate

    estimates = reckon(
        plan(loaded.config), _resources(cluster), device=device, utilisation=utilisation
    )
    say(f"job {job}, size {loaded.size}, config {loaded.digest[:6]}")
    console().print(format_estimate(estimates))


def _resources(cluster: str | None) -> ClusterResources:
    """The cluster to reckon with."""
    from heliostat.cluster.cluster_description import parse_cluster
    from heliostat.cluster.cluster_reader import read_cluster, this_machine
    from heliostat.cluster.ray_cluster import connect

    if cluster is not None:
        return parse_cluster(cluster)
    if settings().ray_address is None:
        return this_machine()
    connection = connect()
    try:
        return read_cluster()
    finally:
        connection.close()
