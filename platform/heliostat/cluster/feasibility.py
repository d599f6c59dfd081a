"""Can a request for workers ever be placed, and can its nodes share the run's storage?

Ray retries a placement that can never succeed for ever, with a log line a minute, so this is asked
before anything starts. A refusal says what was asked, what exists and the nearest choice that fits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from difflib import get_close_matches

from heliostat.cluster.cluster_reader import read_cluster
from heliostat.cluster.placement import Placement, has_type, place
from heliostat.cluster.resources import (
    ClusterResources,
    NodeShape,
    ResourceRequest,
    unique_shapes,
)
from heliostat.cluster.shared_storage import require_shared_storage
from heliostat.errors import InfeasibleError

__all__ = [
    "ClusterResources",
    "Placement",
    "ResourceRequest",
    "read_cluster",
    "require_feasible",
    "require_shared_storage",
]


def require_feasible(request: ResourceRequest, cluster: ClusterResources) -> Placement:
    """How a request is placed; refuses one that can never be.

    Raises:
        InfeasibleError: says what was asked, what exists, and the nearest choice that fits.
    """
    placed = place(request, cluster)
    if placed.workers >= request.workers_min:
        return placed
    raise InfeasibleError(
        f"{_asked(request)} can never be placed: {cluster.name} has {cluster.describe()}; "
        f"{_reason(request, cluster, placed.workers)}; {_nearest(request, cluster, placed.workers)}"
    )


def _asked(request: ResourceRequest) -> str:
    count = (
        str(request.workers_min)
        if request.workers_min == request.workers_max
        else f"at least {request.workers_min}"
    )
    kind = f" of type {request.accelerator_type}" if request.accelerator_type else ""
    parts = [_amount(request.cpus, "CPU")]
    if request.gpus:
        parts.append(_amount(request.gpus, "GPU") + kind)
    if request.memory_bytes:
        parts.append(f"{request.memory_bytes / 1e9:.4g} GB memory")
    noun = "worker" if request.workers_min == 1 else "workers"
    each = " each" if request.workers_min > 1 else ""
    total = request.gpus * request.workers_min
    total_text = f" ({total:g} GPUs)" if request.gpus and request.workers_min > 1 else ""
    return f"{count} {noun} with {' and '.join(parts)}{each}{total_text}"


def _reason(request: ResourceRequest, cluster: ClusterResources, fitting: int) -> str:
    if fitting:
        strict = {
            "STRICT_PACK": " on one node, as placement=STRICT_PACK demands",
            "STRICT_SPREAD": " on nodes of their own, as placement=STRICT_SPREAD demands",
        }.get(request.placement, "")
        return f"only {fitting} such workers fit at once{strict}"
    shapes = _all_shapes(cluster)
    wanted = request.accelerator_type
    if wanted is not None and not any(has_type(shape, wanted) for shape in shapes):
        types = sorted(cluster.device_names)
        near = get_close_matches(wanted, types, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        return f"no node has an accelerator of type {wanted}{hint}"
    lacking = []
    if not any(shape.cpus >= request.cpus for shape in shapes):
        lacking.append("CPUs")
    if request.gpus and not any(shape.gpus >= request.gpus for shape in shapes):
        lacking.append("GPUs")
    if not any((shape.memory_bytes or math.inf) >= request.memory_bytes for shape in shapes):
        lacking.append("memory")
    if lacking:
        return f"no node has the {' and '.join(lacking)} for one such worker"
    return "no single node has everything that one such worker needs"


def _nearest(request: ResourceRequest, cluster: ClusterResources, fitting: int) -> str:
    if fitting:
        return f"nearest that fits: workers={fitting}"
    for smaller in _smaller_requests(request, cluster):
        placed = place(smaller, cluster)
        if placed.workers:
            memory = (
                f" memory_per_worker_gb={smaller.memory_bytes / 1e9:g}"
                if smaller.memory_bytes
                else ""
            )
            drops_kind = request.accelerator_type is not None and smaller.accelerator_type is None
            kind = " accelerator_type=null" if drops_kind else ""
            return (
                f"nearest that fits: workers={placed.workers} gpus_per_worker={smaller.gpus:g} "
                f"cpus_per_worker={smaller.cpus:g}{memory}{kind}"
            )
    return "start nodes first"


def _smaller_requests(request: ResourceRequest, cluster: ClusterResources) -> list[ResourceRequest]:
    """The request cut to what the best-equipped nodes have, those with most GPUs first."""
    shapes = sorted(_all_shapes(cluster), key=lambda s: (s.gpus, s.cpus), reverse=True)
    return [
        replace(
            request,
            workers_min=1,
            cpus=min(request.cpus, shape.cpus),
            gpus=min(request.gpus, math.floor(shape.gpus)),
            # Whole gigabytes, so that the figure in the message fits as printed.
            memory_bytes=min(request.memory_bytes, shape.memory_bytes // 1e9 * 1e9 or math.inf),
            accelerator_type=request.accelerator_type
            if shape.gpus and has_type(shape, request.accelerator_type or "")
            else None,
        )
        for shape in shapes
        if min(request.cpus, shape.cpus) > 0
    ]


def _all_shapes(cluster: ClusterResources) -> tuple[NodeShape, ...]:
    return unique_shapes(
        [*cluster.nodes, *(group.shape for group in cluster.groups if group.more != 0)]
    )


def _amount(value: float, noun: str) -> str:
    return f"{value:g} {noun}" if value == 1 else f"{value:g} {noun}s"
