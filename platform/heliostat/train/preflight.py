"""Refuse what cannot work before any worker starts, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from heliostat.config.int_range import IntRange
from heliostat.config.nearest import nearest_names
from heliostat.config.resources import ResourcesConfig
from heliostat.data.reader import batch_plan
from heliostat.errors import ConfigError
from heliostat.train.config import FitConfig

if TYPE_CHECKING:
    from heliostat.runs.run import Run
    from heliostat.train.task import Task


def check_config(
    name: str,
    config: FitConfig,
    resources: ResourcesConfig,
    measures: Sequence[str] | None = None,
) -> None:
    """Combinations of a fit's config and its resources; needs neither Ray nor torch.

    Args:
        name: of the fit in the job's config.
        config: of the fit.
        resources: its workers.
        measures: the metrics that an evaluation of its task gives; None: that is not known yet.

    Raises:
        ConfigError: they cannot work together.
    """
    metric = config.evaluation.metric
    if measures is not None and metric not in measures:
        near = nearest_names(metric, measures)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ConfigError(
            f"{name}.evaluation.metric is {metric}, but an evaluation gives "
            f"{', '.join(measures)}{hint}"
        )
    if config.precision == "fp16" and not resources.gpus_per_worker:
        raise ConfigError(
            f"{name}.precision is fp16 and resources.gpus_per_worker is 0: fp16 needs a GPU; "
            "on a CPU use bf16 or fp32"
        )
    if resources.expert_parallel is not None:
        _check_expert_parallel(name, config, resources.expert_parallel)
    try:
        allowed_workers(config, resources)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def allowed_workers(config: FitConfig, resources: ResourcesConfig) -> tuple[int, ...]:
    """The numbers of workers that can share every global batch evenly, ascending; one at least.

    Raises:
        ConfigError: there is none.
    """
    at_once = config.micro_batch
    counts = range(resources.workers.low, resources.workers.high + 1)
    ramp = config.batch_ramp
    parts = (config.batch,) if ramp is None else (config.batch, ramp.start, ramp.increment)
    allowed = tuple(
        count for count in counts if all(part % (at_once * count) == 0 for part in parts)
    )
    if not allowed:
        # It says what is wrong with the largest.
        batch_plan(config.batch, at_once, resources.workers.high)
        assert ramp is not None
        raise ConfigError(
            f"batch_ramp.start is {ramp.start} and batch_ramp.increment is {ramp.increment}, but "
            f"micro batches of {at_once} on {resources.workers.high} workers are "
            f"{at_once * resources.workers.high} samples at a time: give multiples of that, or "
            "another micro_batch or number of workers"
        )
    return allowed


def _check_expert_parallel(name: str, config: FitConfig, size: int) -> None:
    stage = config.zero.stage
    if stage == 3:
        raise ConfigError(
            f"{name}.zero.stage is 3 and resources.expert_parallel is {size}: stage 3 would shard "
            "experts that are shared out already; use stage 0, 1 or 2"
        )
    if config.precision != "fp32" and stage == 0:
        raise ConfigError(
            f"{name}.precision is {config.precision}, {name}.zero.stage is 0 and "
            f"resources.expert_parallel is {size}: the norm of all weights together is known in "
            "fp32, or in stage 1 or 2; use one of these"
        )
    if config.precision == "fp16":
        raise ConfigError(
            f"{name}.precision is fp16 and resources.expert_parallel is {size}: shared experts "
            "have no loss scale; use bf16"
        )


def check_training(task: Task, config: FitConfig, resources: ResourcesConfig, run: Run) -> None:
    """Everything that can be known before the workers start; needs a connected cluster.

    Raises `ConfigError` or `InfeasibleError`.
    """
    from heliostat.cluster.feasibility import (
        ResourceRequest,
        read_cluster,
        require_feasible,
        require_shared_storage,
    )

    check_config(task.name, config, resources)
    cluster = read_cluster()
    allowed = allowed_workers(config, resources)
    possible = replace(resources, workers=IntRange(allowed[0], allowed[-1]))
    require_feasible(ResourceRequest.of(possible), cluster)
    require_shared_storage(run.folder, cluster, "out")
    require_shared_storage(run.cache, cluster, "HELIOSTAT_HOME")
