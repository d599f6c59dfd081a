"""Ray Train without the helpers that only a shared cluster needs (read in ray 2.60.0).

On a cluster that this process started there is no autoscaler to ask for nodes, no node that could
be preempted, and nobody to inherit a placement group: the cluster ends with the process. Ray Train
starts an actor for each of these, one process after another, and gives all of them a runtime
environment, for which a process that is ready and waiting cannot be taken. On two cores that is
most of the time from the command to the first step.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    """A worker group of one size, whose nodes are all there."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Nothing is asked of an autoscaler."""

    def _maybe_send_resource_request(self) -> None:
        pass


class LeanController(TrainController):  # type: ignore[misc]
    """Ray Train's controller of a training, without the watch for preempted nodes."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        callbacks: list[RayTrainCallback] = self._worker_group_callbacks_to_propagate
        callbacks[:] = [one for one in callbacks if not isinstance(one, PreemptionCallback)]


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer, for a cluster of our own."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unneeded = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, unneeded)
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        if not self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = FixedSize(self.scaling_config)
        controller = ray.remote(num_cpus=0)(LeanController).remote(**arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
