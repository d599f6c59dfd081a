"""How many workers an elastic training starts with beside other tenants (read in ray 2.60.0).

Ray Train's elastic policy counts the resources that Ray's autoscaling coordinator has reserved for
the training. The coordinator knows the sizes of the nodes and what was asked of it, not what tasks
and actors that never asked it have taken. On a cluster shared with such tenants the policy would
start too many workers again and again, and never the few that fit. `WithinRoom` counts what is free
as well. And of the numbers of workers between the bounds, only those are taken that can share the
global batch evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray._private.state import available_resources_per_node
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ReservedResources
from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)


class WithinRoom(ElasticScalingPolicy):  # type: ignore[misc]
    """As many workers as are reserved, but no more than there is room for."""

    def __init__(self, scaling_config: ScalingConfig, allowed: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._allowed = allowed
        self._own = 0
        """Workers whose resources this training holds."""
        self._starting = 0
        self._last_seen: int | None = None

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Follow which worker group there is."""
        # A group that fails while it runs keeps its resources until the next one starts.
        if isinstance(current_state, SchedulingState):
            self._own, self._starting = 0, current_state.scaling_decision.num_workers
        elif isinstance(current_state, RunningState):
            self._own = self._starting
        elif isinstance(current_state, ReschedulingState):
            self._own = 0

    def _count_possible_workers(self, reserved_resources: ReservedResources) -> int:
        reserved = super()._count_possible_workers(reserved_resources)
        room = super()._count_possible_workers(available_resources_per_node())
        most = min(reserved, self._own + room)
        return max((count for count in self._allowed if count <= most), default=0)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with fewer than the most only if two looks in a row agree.

        What somebody has just given back is seen a moment later.
        """
        decision = super().make_decision_for_non_running_worker_group()
        if not isinstance(decision, ResizeDecision):
            return decision
        seen, self._last_seen = self._last_seen, decision.num_workers
        if decision.num_workers in (seen, self.scaling_config.max_workers):
            self._last_seen = None
            return decision
        return NoopDecision()


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer, whose elastic trainings heed other tenants."""

    allowed_workers: tuple[int, ...] = ()
    """Numbers of workers that an elastic training may have."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = WithinRoom(self.scaling_config, self.allowed_workers)
        return super()._initialize_and_run_controller(**arguments)
