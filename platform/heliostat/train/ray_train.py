"""The one module that speaks to Ray Train: start workers for a training, give back its outcome."""

from __future__ import annotations

import logging
import uuid

from heliostat.cluster.ray_cluster import owns_cluster, worker_runtime_env
from heliostat.config.resources import ResourcesConfig
from heliostat.errors import HeliostatError
from heliostat.storage import Location
from heliostat.train.preflight import allowed_workers
from heliostat.train.spec import FitSpec, Outcome
from heliostat.train.worker import train_worker

logger = logging.getLogger(__name__)

START_TRIES = 30
"""Ray Train gives each start of the workers a minute; without a limit it would try for ever."""


def run_workers(spec: FitSpec, resources: ResourcesConfig, run_id: str, stage: str) -> Outcome:
    """Run a worker group to its end, starting it again after failures.

    Raises Ray Train's own errors when it fails for good.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from heliostat.train.elastic import Trainer
    from heliostat.train.lean_trainer import LeanTrainer

    is_own = owns_cluster()
    # The controller then runs in this process, and what breaks comes back as an exception as well.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL if is_own else logging.WARNING)
    filesystem, path = (spec.folder / "ray").filesystem()
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    if resources.memory_per_worker_gb is not None:
        per_worker["memory"] = resources.memory_per_worker_gb * 1e9
    allowed = allowed_workers(spec.config, resources)
    low, high = allowed[0], allowed[-1]
    trainer = (LeanTrainer if is_own else Trainer)(
        train_worker,
        train_loop_config={"spec": spec},
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=high if low == high else (low, high),
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker=per_worker,
            placement_strategy=resources.placement,
            accelerator_type=resources.accelerator_type,
        ),
        run_config=RunConfig(
            # Checkpoints are ours, so nothing of Ray Train's folder is ever read again; a name of
            # its own for every start keeps Ray Train from resuming by itself.
            name=f"{run_id}-{stage}-{uuid.uuid4().hex[:6]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=spec.config.max_failures,
                controller_failure_limit=START_TRIES,
            ),
            worker_runtime_env=_runtime_env(spec, resources),
        ),
    )
    trainer.allowed_workers = allowed
    result = trainer.fit()
    _tidy(spec.folder / "ray")
    return Outcome(**result.return_value)


def _tidy(bookkeeping: Location) -> None:
    """Remove what Ray Train keeps of its own; no training fails because of it."""
    try:
        bookkeeping.delete()
    except HeliostatError as error:
        logger.warning("%s could not be removed: %s", bookkeeping.uri, error)


def _runtime_env(spec: FitSpec, resources: ResourcesConfig) -> dict[str, dict[str, str]]:
    environment = worker_runtime_env(gpu=bool(resources.gpus_per_worker))
    if environment and spec.config.deterministic:
        # Without it cuBLAS may choose another order of summation from one start to the next.
        environment["env_vars"]["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return environment
