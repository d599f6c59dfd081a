"""What a training will take, known before anything starts: memory, operations, time, disk, place.

Parameters, activations and operations come from a dry pass without values (`dry_pass`); where a
task cannot make up a batch and its data are not prepared, operations follow the formula
`6 x matrix parameters x tokens` and activations stay unknown. Evaluation, data preparation,
checkpoint writing and the start of workers are not in the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heliostat.cluster.compute_rate import ComputeRate, measured_cpu_rate, stated_rate
from heliostat.cluster.feasibility import require_feasible
from heliostat.cluster.fit_estimate import Disk, FitEstimate, StageMemory, Work
from heliostat.cluster.fit_plan import FitPlan
from heliostat.cluster.hardware import memory_bytes
from heliostat.cluster.model_states import (
    STAGES,
    checkpoint_bytes,
    model_state_bytes,
    weights_bytes,
)
from heliostat.cluster.placement import Placement, workers_on
from heliostat.cluster.plan_costs import activation_bytes, measure, meta_model, steps_of, work_of
from heliostat.cluster.resources import ClusterResources, ResourceRequest
from heliostat.data.reader import batch_plan
from heliostat.errors import InfeasibleError

if TYPE_CHECKING:
    from heliostat.cluster.dry_pass import ParameterCount

DEFAULT_UTILISATION = 0.4
USABLE_MEMORY = 0.9
"""Share of a device's memory that a plan may fill; the rest goes to buffers and fragmentation."""


def estimate(
    plans: Sequence[FitPlan],
    cluster: ClusterResources,
    *,
    device: str | None = None,
    utilisation: float = DEFAULT_UTILISATION,
) -> list[FitEstimate]:
    """Estimate every training of a job.

    Args:
        plans: as the job's `plan(config)` gives them.
        cluster: connected, described, or this machine.
        device: the GPU to reckon with; None for the kind asked for, else the cluster's.
        utilisation: share of the device's rate that training reaches.
    """
    return [estimate_fit(plan, cluster, device, utilisation) for plan in plans]


def estimate_fit(
    plan: FitPlan, cluster: ClusterResources, device: str | None, utilisation: float
) -> FitEstimate:
    """Estimate one training; see `estimate`."""
    from heliostat.cluster.dry_pass import count_parameters

    notes: list[str] = []
    request = ResourceRequest.of(plan.resources)
    placement, refusal = _placement(request, cluster)
    world_size = request.workers_max if placement is None else placement.workers
    batch = batch_plan(plan.fit.batch, plan.fit.micro_batch, world_size)
    model = meta_model(plan, notes)
    parameters = count_parameters(model)
    steps = steps_of(plan, notes)
    measured = measure(plan, model, notes)
    activations = activation_bytes(plan, measured, notes)
    device_name = _device_name(request, cluster, device)
    limit = _memory_limit(request, cluster, device_name)
    rate = _rate(request, device_name, plan.fit.precision, notes)
    work = work_of(plan, parameters, measured, steps, notes)
    return FitEstimate(
        name=plan.name,
        parameters=parameters,
        batch=batch,
        batch_ramp=plan.fit.batch_ramp,
        steps=steps,
        precision=plan.fit.precision,
        stage=plan.fit.zero.stage,
        memory=_memory(plan, parameters, world_size, activations, limit),
        activations=activations,
        memory_limit=limit,
        work=work,
        rate=rate,
        utilisation=utilisation,
        seconds=_seconds(work, rate, utilisation, world_size, placement),
        disk=_disk(plan, parameters, steps),
        placement=placement,
        refusal=refusal,
        notes=tuple(notes),
    )


def _placement(
    request: ResourceRequest, cluster: ClusterResources
) -> tuple[Placement | None, str | None]:
    try:
        return require_feasible(request, cluster), None
    except InfeasibleError as error:
        return None, str(error)


def _memory(
    plan: FitPlan,
    parameters: ParameterCount,
    world_size: int,
    activations: float | None,
    limit: float | None,
) -> tuple[StageMemory, ...]:
    """Every stage; offloading as configured where the stage allows it."""
    zero, sharing = plan.fit.zero, plan.resources.expert_parallel
    # Shared weights are divided by the workers of a group, and by ZeRO no further.
    shared = parameters.shareable if sharing is not None else 0
    rows = []
    for stage in STAGES if sharing is None else STAGES[:3]:
        state = model_state_bytes(
            parameters.total - shared,
            stage,
            world_size,
            plan.fit.precision,
            trainable=parameters.trainable - shared,
            optimizer=plan.fit.optimizer.name,
            offload_optimizer=zero.offload_optimizer and stage > 0,
            offload_parameters=zero.offload_parameters and stage == 3,
        )
        if sharing is not None:
            own = model_state_bytes(
                shared // sharing, 0, 1, plan.fit.precision, optimizer=plan.fit.optimizer.name
            )
            state = state.plus(own)
        total = state.device + (activations or 0.0)
        # Too much without activations is too much; enough without them says nothing.
        fits: bool | None = None
        if limit is not None and (activations is not None or total > USABLE_MEMORY * limit):
            fits = total <= USABLE_MEMORY * limit
        rows.append(StageMemory(stage=stage, state=state, total=total, fits=fits))
    return tuple(rows)


def _device_name(
    request: ResourceRequest, cluster: ClusterResources, device: str | None
) -> str | None:
    if not request.gpus:
        return None
    known = sorted(cluster.device_names)
    return device or request.accelerator_type or (known[0] if len(known) == 1 else None)


def _memory_limit(
    request: ResourceRequest, cluster: ClusterResources, device_name: str | None
) -> float | None:
    if request.gpus:
        return memory_bytes(device_name) if device_name else None
    shares = [
        node.memory_bytes / min(workers_on(node, request), request.workers_max)
        for node in cluster.nodes
        if node.memory_bytes and workers_on(node, request)
    ]
    return min(shares, default=None)


def _rate(
    request: ResourceRequest, device_name: str | None, precision: str, notes: list[str]
) -> ComputeRate | None:
    if not request.gpus:
        return measured_cpu_rate(precision)
    rate = stated_rate(device_name, precision) if device_name else None
    if rate is None:
        which = (
            f"{device_name} in {precision}" if device_name else "the GPUs, whose kind is unknown"
        )
        notes.append(f"no time: nobody states a peak for {which}; name a device such as H100 SXM")
    return rate


def _seconds(
    work: Work | None,
    rate: ComputeRate | None,
    utilisation: float,
    world_size: int,
    placement: Placement | None,
) -> float | None:
    if work is None or rate is None:
        return None
    nodes = 1 if placement is None else placement.nodes
    devices = nodes if rate.is_per_machine else world_size
    return work.flops / (rate.flops_per_s * utilisation * devices)


def _disk(plan: FitPlan, parameters: ParameterCount, steps: int | None) -> Disk:
    written = (
        None
        if steps is None or plan.fit.checkpoint.every is None
        else (max(1, -(-steps // plan.fit.checkpoint.every)))
    )
    # The newest, and the best one besides.
    kept = plan.fit.checkpoint.keep + 1
    evaluations = 0
    if plan.fit.checkpoint.weights_at_evaluations:
        every = plan.fit.evaluation.every
        evaluations = 10 if every is None or steps is None else steps // every
    return Disk(
        checkpoint=checkpoint_bytes(
            parameters.total,
            plan.fit.zero.stage,
            plan.fit.precision,
            trainable=parameters.trainable,
            optimizer=plan.fit.optimizer.name,
        ),
        checkpoints_kept=kept if written is None else min(kept, written),
        weights=weights_bytes(parameters.total),
        weights_kept=1 + evaluations,
    )
