"""How many workers fit on which nodes: exact packing of equal workers.

Totals do not decide it: two workers with 4 GPUs each do not fit on four nodes with 2. Since all
workers are equal, a node holds as many as its scarcest resource allows. What is busy just now
counts as available, since it will be free some day.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from heliostat.cluster.resources import ClusterResources, NodeShape, ResourceRequest


@dataclass(frozen=True)
class Placement:
    """How a request would be placed."""

    workers: int
    """As many as can run at once, at most what was asked for."""
    nodes: int
    """Fewest nodes that hold them."""
    waits_for_nodes: bool
    """Whether the autoscaler must first start nodes."""


def place(request: ResourceRequest, cluster: ClusterResources) -> Placement:
    """Place a request on the nodes that run, or else also on those that could be added.

    Fewer workers than `request.workers_min` in the answer mean that it can never be placed.
    """
    capacities = _capacities(request, cluster)
    live = _fill(request, capacities[: len(cluster.nodes)])
    if live.workers >= request.workers_min:
        return live
    return replace(_fill(request, capacities), waits_for_nodes=True)


def workers_on(shape: NodeShape, request: ResourceRequest) -> int:
    """How many workers of a request one empty node holds."""
    if request.accelerator_type is not None and not has_type(shape, request.accelerator_type):
        return 0
    rooms = [
        (shape.cpus, request.cpus),
        (shape.gpus, request.gpus),
        (shape.memory_bytes or math.inf, request.memory_bytes),
    ]
    # Ray counts in ten-thousandths; the margin keeps 3 x 0.1 on a node with 0.3.
    return int(min(have / want for have, want in rooms if want > 0) + 1e-6)


def _capacities(request: ResourceRequest, cluster: ClusterResources) -> list[int]:
    """Workers per node: the nodes that run, then those that could be added."""
    capacities = [workers_on(node, request) for node in cluster.nodes]
    for group in cluster.groups:
        room = workers_on(group.shape, request)
        # No limit: as many nodes as the request could use at most.
        more = request.workers_max if group.more is None else group.more
        capacities.extend([room] * min(more, request.workers_max))
    return capacities


def _fill(request: ResourceRequest, capacities: list[int]) -> Placement:
    rooms = sorted((room for room in capacities if room), reverse=True)
    if request.placement == "STRICT_PACK":
        rooms = rooms[:1]
    elif request.placement == "STRICT_SPREAD":
        rooms = [1] * len(rooms)
    workers = nodes = 0
    for room in rooms:
        if workers >= request.workers_max:
            break
        workers += room
        nodes += 1
    return Placement(min(workers, request.workers_max), nodes, waits_for_nodes=False)


def has_type(shape: NodeShape, wanted: str) -> bool:
    """Whether a node has GPUs of a type; `H100` also stands for `H100 SXM`."""
    return any(
        have.lower() == wanted.lower() or have.lower().startswith(f"{wanted.lower()} ")
        for have in shape.accelerator_types
    )
