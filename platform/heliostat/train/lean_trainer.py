"""Ray Train without the helpers that only a shared cluster needs (read in ray 2.60.0).

On a cluster that this process started there is no autoscaler to ask for nodes, no node that could
be preempted, and nobody to inherit a placement group or a controller: the cluster ends with the
process. Nor does anything wait at Ray Train's own barrier: ranks agree through torch's collectives,
and checkpoints are ours. Ray Train starts an actor for each of these, one process after another. On
two cores that is most of the time from the command to the first step, and what they go on to do,
which is a hundredth of a core for a process that only waits, is taken from the training. So the
controller runs in a thread of the driver, which has its libraries loaded already, the other
helpers are left out, and workers go from one training to the next (`warm_workers`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import Result
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import (
    Worker,
    WorkerGroup,
    state,
    worker_group,
)

from heliostat.train.elastic import Trainer, WithinRoom
from heliostat.train.warm_workers import (
    forget_training,
    keep_workers,
    start_workers,
    take_workers,
)

FORGETTING_S = 10
_LOGGING = threading.Lock()


class NoSynchronization:
    """In the place of Ray Train's `SynchronizationActor`, at which nobody waits."""

    @classmethod
    def options(cls, **_: Any) -> type[NoSynchronization]:
        """What Ray Train places the actor with."""
        return cls

    @classmethod
    def remote(cls, **_: Any) -> NoSynchronization:
        """What Ray Train starts the actor with."""
        return cls()


def _adapt_worker_groups() -> None:
    """Have the worker groups of this process, which are all lean ones, end in our way.

    Worker groups on other people's clusters belong to controllers in processes of their own.
    """
    worker_group.SynchronizationActor = NoSynchronization
    state._shutdown_sync_actor = lambda sync_actor: None
    state._shutdown_workers = _keep_or_end


_end_workers = state._shutdown_workers


def _keep_or_end(workers: list[Worker], patience_s: float = 5) -> None:
    """Let workers wait for the next training if all of them can, else end them."""
    cpus = _cpus_alone(workers[0].resources)
    if cpus is not None:
        try:
            asked = [worker.actor.execute.remote(forget_training) for worker in workers]
            can_wait = all(ray.get(asked, timeout=FORGETTING_S))
        except RayError:
            can_wait = False
        if can_wait:
            keep_workers([worker.actor for worker in workers], cpus)
            return
    _end_workers(workers, patience_s)


def _cpus_alone(resources: Mapping[str, float]) -> float | None:
    """CPUs of a worker; None where it has something else as well."""
    return resources["CPU"] if set(resources) == {"CPU"} else None


class FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    """A worker group of one size, whose nodes are all there."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Nothing is asked of an autoscaler."""

    def _maybe_send_resource_request(self) -> None:
        pass


class LeanWorkerGroup(WorkerGroup):  # type: ignore[misc]
    """Ray Train's workers, started by a controller that is no actor."""

    def _create_workers(
        self,
        num_workers: int,
        placement_group: Any,
        resources_per_worker: dict[str, float],
        **places: Any,
    ) -> list[Worker]:
        """Workers that wait already, as far as there are any, and new ones."""
        cpus = _cpus_alone(resources_per_worker)
        if cpus is None:
            created = super()._create_workers(
                num_workers, placement_group, resources_per_worker, **places
            )
            return list(created)
        actors = take_workers(num_workers, cpus)
        actors += start_workers(num_workers - len(actors), cpus)
        try:
            metadata = ray.get([actor.get_metadata.remote() for actor in actors])
        except RayActorError:
            # One died while it waited; the others are not worth a group of two kinds.
            for actor in actors:
                ray.kill(actor)
            actors = start_workers(num_workers, cpus)
            metadata = ray.get([actor.get_metadata.remote() for actor in actors])
        # They hold no CPU of their own: the placement group keeps it for them.
        workers = [
            Worker(actor, one, resources_per_worker, placement_group_bundle_index=index)
            for index, (actor, one) in enumerate(zip(actors, metadata, strict=True))
        ]
        return list(self._assign_worker_ranks(workers, 0, None, None))

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """Tell the workers where they are; Ray Train's own asks for the controller's actor."""
        told = []
        for index, worker in enumerate(workers):
            own = {name: values[index] for name, values in train_context_args.items()}
            told.append(
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    # Only reports to Ray Train go through these; our line is the monitor.
                    synchronization_actor=None,
                    controller_actor=None,
                    **own,
                )
            )
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)


class LeanController(TrainController):  # type: ignore[misc]
    """Ray Train's controller of a training, without the watch for preempted nodes."""

    worker_group_cls = LeanWorkerGroup

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        callbacks: list[RayTrainCallback] = self._worker_group_callbacks_to_propagate
        callbacks[:] = [one for one in callbacks if not isinstance(one, PreemptionCallback)]


class LeanTrainer(Trainer):
    """Ray Train's trainer, for a cluster of our own."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unneeded = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, unneeded)
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        arguments["scaling_policy"] = (
            WithinRoom(self.scaling_config, self.allowed_workers)
            if self.scaling_config.elasticity_enabled
            else FixedSize(self.scaling_config)
        )
        _adapt_worker_groups()
        with _logging_kept():
            controller = LeanController(**arguments)
        asyncio.run(controller.run())
        return controller.get_result()


@contextmanager
def _logging_kept() -> Iterator[None]:
    """A controller takes its process's logging over; this process is the driver."""
    log = logging.getLogger("ray.train")
    # Of two at a time the second would find, and put back, what the first one's controller set.
    with _LOGGING:
        handlers, level, propagate = list(log.handlers), log.level, log.propagate
        yield
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = propagate
