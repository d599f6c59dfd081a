"""Workers of a cluster of our own that begin to import before training is called for.

A process takes seconds to import torch and DeepSpeed. So the actors that Ray Train will train in
are made as soon as Ray is there, and import while the driver still reads its config and prepares
data. (Ray gives no process that has run a task to an actor, so tasks would not help.) They hold no
CPU; the training that takes them keeps theirs in its placement group.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class _Waiting:
    """Workers that wait for a training."""

    actors: tuple[Any, ...]
    cpus: float
    """Of each."""
    cluster: str
    """Address of the cluster that they are in."""


_lock = threading.Lock()
_waiting: _Waiting | None = None


def warm_up(workers: int, cpus_per_worker: float) -> None:
    """Prepare the workers of a training without a GPU; does not wait."""
    import ray
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    global _waiting
    worker = ray.remote(num_cpus=0)(RayTrainWorker)
    actors = tuple(worker.remote() for _ in range(workers))
    for actor in actors:
        actor.execute.remote(_prepare, max(1, int(cpus_per_worker)))
    with _lock:
        _waiting = _Waiting(actors, cpus_per_worker, ray.get_runtime_context().gcs_address)


def take_warm_workers(workers: int, resources: Mapping[str, float]) -> tuple[Any, ...]:
    """So many of the workers that wait, each given once; empty where too few of the kind do."""
    import ray

    global _waiting
    with _lock:
        found = _waiting
        if (
            found is None
            or len(found.actors) < workers
            or dict(resources) != {"CPU": found.cpus}
            or found.cluster != ray.get_runtime_context().gcs_address
        ):
            return ()
        given, left = found.actors[:workers], found.actors[workers:]
        _waiting = replace(found, actors=left) if left else None
        return given


def _prepare(threads: int) -> None:
    import os

    # Ray sets it by the CPUs that an actor holds, and torch reads it when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(threads)

    from heliostat.train.worker import prepare_process

    prepare_process(gpu=False)
