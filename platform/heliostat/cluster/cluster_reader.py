"""What machines there are: the connected cluster's nodes, or this machine's.

Besides the nodes that run, an autoscaler may start more. Its limits come from Ray's control store
where the autoscaler reports them, from the RayCluster of this pod on Kubernetes, or from the file
that `ray up` leaves on the head node. Without any of them a cluster is taken as it stands.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from heliostat.cluster import ray_internals
from heliostat.cluster.cluster_description import of_ray_cluster, parse_cluster
from heliostat.cluster.resources import (
    ClusterResources,
    NodeGroup,
    NodeShape,
    shape_of_resources,
)

LEAST_LOGICAL_CPUS = 2
"""A laptop's cluster has at least this many: a CPU in Ray is a ticket, not a core, and with one
ticket a run of two workers, or a worker beside a data-preparation task, could never start."""

# Written by `ray up` on the head node; the autoscaler of such a cluster reads it too.
_RAY_UP_FILE = Path("~/ray_bootstrap_config.yaml")


def read_cluster() -> ClusterResources:
    """The nodes of the connected cluster, and those that its autoscaler may still add."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    shapes = tuple(shape_of_resources(node["Resources"]) for node in alive)
    names = tuple(node["Labels"].get(ray_internals.NODE_GROUP_LABEL) for node in alive)
    groups = remaining_groups(shapes, names, _autoscaler_limits())
    name = "this machine" if len(shapes) == 1 and not groups else "the cluster"
    return ClusterResources(shapes, groups, name=name)


def remaining_groups(
    nodes: tuple[NodeShape, ...], names: tuple[str | None, ...], limits: tuple[NodeGroup, ...]
) -> tuple[NodeGroup, ...]:
    """What an autoscaler can add beyond the nodes that run.

    A running node counts against its group by its label, or else by its shape; one that is missed
    makes us hopeful, never wrongly refuse.

    Args:
        nodes: the nodes that run.
        names: for each the name of its group, where it is labelled with one.
        limits: for each group, `more` as the most nodes there may ever be.
    """
    left = []
    for group in limits:
        running = sum(
            name == group.name
            or (name is None and (node.cpus, node.gpus) == (group.shape.cpus, group.shape.gpus))
            for node, name in zip(nodes, names, strict=True)
        )
        left.append(replace(group, more=None if group.more is None else group.more - running))
    return tuple(group for group in left if group.more is None or group.more > 0)


def _autoscaler_limits() -> tuple[NodeGroup, ...]:
    """The most nodes of each kind: from Ray itself, from KubeRay, or from `ray up`."""
    reported = ray_internals.autoscaler_groups()
    if reported:
        return tuple(
            NodeGroup(shape_of_resources(group.resources), group.most, group.name)
            for group in reported
        )
    spec = ray_internals.own_ray_cluster_spec()
    if spec is not None:
        return node_limits(of_ray_cluster(spec, "the cluster"))
    ray_up = _RAY_UP_FILE.expanduser()
    return node_limits(parse_cluster(str(ray_up))) if ray_up.is_file() else ()


def node_limits(described: ClusterResources) -> tuple[NodeGroup, ...]:
    """Per node type the most there may be, from a description with nodes and more nodes."""
    return tuple(
        replace(group, more=None if group.more is None else group.more + least)
        for group in described.groups
        for least in [sum(node == group.shape for node in described.nodes)]
    )


def this_machine() -> ClusterResources:
    """What a cluster of our own would have here, without starting Ray."""
    import psutil
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    # Ray hands out 70 % of the memory that is free when it starts; the rest is its object store.
    memory = 0.7 * psutil.virtual_memory().available
    shape = NodeShape(
        cpus=logical_cpus(),
        gpus=len(names),
        memory_bytes=memory,
        accelerator_types=frozenset(names),
    )
    return ClusterResources(nodes=(shape,), name="this machine")


def logical_cpus() -> int:
    """How many CPUs a cluster of our own offers on this machine."""
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(LEAST_LOGICAL_CPUS, min(affinity, ray_internals.usable_cpus()))
