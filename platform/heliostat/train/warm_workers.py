"""Workers of a cluster of our own that are ready before training is called for.

A process takes seconds to import torch and DeepSpeed. So the first actors that Ray Train will train
in are made as soon as Ray is there, and import while the driver still reads its config and prepares
data. (Ray gives no process that has run a task to an actor, so tasks would not help.) And when a
training ends well, its workers forget it and wait for the next: a claim trains dozens of models, a
pipeline several. They hold no CPU of their own; the training that takes them keeps theirs in its
placement group.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Kind:
    """What workers must have in common to be taken for each other."""

    cpus: float
    """Of each."""
    cluster: str
    """Address of the cluster that they are in."""


_lock = threading.Lock()
_waiting: list[Any] = []
_kind_waiting: _Kind | None = None


def warm_up(workers: int, cpus_per_worker: float) -> None:
    """Prepare the workers of a training without a GPU; does not wait."""
    keep_workers(start_workers(workers, cpus_per_worker), cpus_per_worker)


def start_workers(workers: int, cpus_per_worker: float) -> list[Any]:
    """So many new processes, which begin to import; does not wait."""
    import ray
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    worker = ray.remote(num_cpus=0)(RayTrainWorker)
    actors = [worker.remote() for _ in range(workers)]
    for actor in actors:
        actor.execute.remote(_prepare, max(1, int(cpus_per_worker)))
    return actors


def take_workers(workers: int, cpus_per_worker: float) -> list[Any]:
    """Up to so many of the workers that wait, each given once.

    Those of another kind are let go: they would only hold memory.
    """
    global _kind_waiting
    kind = _kind(cpus_per_worker)
    with _lock:
        if _kind_waiting != kind:
            _waiting.clear()
            _kind_waiting = kind
        given = _waiting[:workers]
        del _waiting[:workers]
        return given


def keep_workers(actors: Sequence[Any], cpus_per_worker: float) -> None:
    """Let workers wait for the next training; Ray ends those of another kind that waited."""
    global _kind_waiting
    kind = _kind(cpus_per_worker)
    with _lock:
        if _kind_waiting != kind:
            _waiting.clear()
            _kind_waiting = kind
        _waiting.extend(actors)


def forget_training() -> bool:
    """Make this process, a worker, as it was before its training; False where it cannot be.

    Only a training that returned can be forgotten.
    """
    import ctypes
    import sys
    from contextlib import suppress
    from pathlib import Path

    import torch.distributed
    from deepspeed.comm import comm
    from deepspeed.utils import groups
    from ray.train.v2._internal.execution.context import get_train_context

    from heliostat.train.engine import are_engines_gone

    runner = get_train_context().execution_context.training_thread_runner
    if runner.is_running() or runner.get_error() is not None:
        return False
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    # DeepSpeed keeps the process groups of the training in its modules.
    groups._release_process_group_references()
    comm.cdb = None
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if not are_engines_gone():
        return False
    with suppress(OSError, AttributeError):
        # The C library keeps what was freed in pieces; only glibc has a word for giving it back.
        ctypes.CDLL(None).malloc_trim(0)
    # The peak of the memory begins anew, where the system lets it.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return True


def _kind(cpus_per_worker: float) -> _Kind:
    import ray

    return _Kind(cpus_per_worker, ray.get_runtime_context().gcs_address)


def _prepare(threads: int) -> None:
    import os

    # Ray sets it by the CPUs that an actor holds, and torch reads it when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(threads)

    from heliostat.train.worker import prepare_process

    prepare_process(gpu=False)
