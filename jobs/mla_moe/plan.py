"""The training of a run, for `heliostat estimate`: nothing is read or prepared."""

from __future__ import annotations

from heliostat.cluster.fit_plan import FitPlan
from heliostat.storage import Location
from jobs.mla_moe.config import Config
from jobs.mla_moe.pipeline import task_of


def plan(config: Config) -> list[FitPlan]:
    """What `run` will train."""
    nowhere = Location.of("/nonexistent")
    return [
        FitPlan(
            name="lm",
            task=task_of(config, nowhere, nowhere),
            fit=config.fit,
            resources=config.resources,
            tokens_per_sample=config.data.length,
        )
    ]
