"""Requests that can and cannot be placed, and what a refusal says."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.cluster.cluster_description import parse_cluster
from heliostat.cluster.feasibility import require_feasible
from heliostat.cluster.placement import place, workers_on
from heliostat.cluster.resources import ClusterResources, NodeGroup, NodeShape, ResourceRequest
from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig
from heliostat.errors import ConfigError, InfeasibleError

LAPTOP = ClusterResources((NodeShape(cpus=2, memory_bytes=16e9),), name="this machine")


def workers(count: int, **kind: float) -> ResourceRequest:
    return ResourceRequest(workers_min=count, workers_max=count, **kind)  # type: ignore[arg-type]


def test_100_gpus_on_a_laptop_are_refused_with_what_exists() -> None:
    with pytest.raises(InfeasibleError) as refusal:
        require_feasible(workers(100, gpus=1), LAPTOP)
    message = str(refusal.value)
    assert "100 workers with 1 CPU and 1 GPU each (100 GPUs) can never be placed" in message
    assert "this machine has 1 node with 2 CPUs, 0 GPUs, 16 GB memory" in message
    assert message.endswith("nearest that fits: workers=2 gpus_per_worker=0 cpus_per_worker=1")
    assert "\n" not in message


def test_100_gpus_are_refused_within_5_seconds_from_a_cold_start() -> None:
    code = (
        "from heliostat.cluster.feasibility import ResourceRequest, require_feasible\n"
        "from heliostat.cluster.cluster_reader import this_machine\n"
        "require_feasible(ResourceRequest(100, 100, gpus=1), this_machine())\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    elapsed = time.monotonic() - start
    assert "InfeasibleError" in done.stderr
    assert "100 GPUs" in done.stderr
    assert elapsed < 5


def test_enough_in_total_but_no_node_large_enough_is_refused() -> None:
    cluster = parse_cluster("nodes=4,cpus=8,gpus=2")
    with pytest.raises(InfeasibleError, match=r"4 nodes with 8 CPUs, 2 GPUs each; no node has"):
        require_feasible(workers(2, gpus=4), cluster)


def test_left_over_room_on_each_node_does_not_add_up() -> None:
    cluster = parse_cluster("nodes=3,cpus=5")
    assert require_feasible(workers(3, cpus=3), cluster).nodes == 3
    with pytest.raises(InfeasibleError, match="only 3 such workers fit at once"):
        require_feasible(workers(4, cpus=3), cluster)


def test_elastic_request_is_placed_with_as_many_as_fit() -> None:
    request = ResourceRequest(workers_min=2, workers_max=16, gpus=1)
    assert require_feasible(request, parse_cluster("cpus=8,gpus=8")).workers == 8


def test_nodes_that_can_still_be_added_count() -> None:
    group = NodeGroup(NodeShape(cpus=32, gpus=8), more=2, name="gpu")
    cluster = ClusterResources((NodeShape(cpus=4),), (group,))
    placed = require_feasible(workers(16, gpus=1), cluster)
    assert placed.waits_for_nodes
    assert placed.nodes == 2
    with pytest.raises(InfeasibleError, match="up to 2 more with 32 CPUs, 8 GPUs each"):
        require_feasible(workers(17, gpus=1), cluster)


def test_a_group_without_limit_always_suffices() -> None:
    group = NodeGroup(NodeShape(cpus=8, gpus=1), more=None)
    cluster = ClusterResources((), (group,))
    assert require_feasible(workers(1000, gpus=1), cluster).workers == 1000


def test_running_nodes_are_preferred_to_waiting() -> None:
    group = NodeGroup(NodeShape(cpus=64), more=5)
    cluster = ClusterResources((NodeShape(cpus=2),), (group,))
    assert not require_feasible(workers(2), cluster).waits_for_nodes


def test_a_wrong_accelerator_type_names_the_nearest() -> None:
    cluster = parse_cluster("cpus=8,gpus=8,device=A100")
    request = ResourceRequest(gpus=1, accelerator_type="H100")
    with pytest.raises(InfeasibleError, match=r"type H100, did you mean A100\?.*=null"):
        require_feasible(request, cluster)


def test_strict_placement_is_respected() -> None:
    cluster = parse_cluster("nodes=4,cpus=8,gpus=2")
    request = ResourceRequest(4, 4, gpus=1, placement="STRICT_PACK")
    with pytest.raises(InfeasibleError, match="only 2 such workers fit at once on one node"):
        require_feasible(request, cluster)
    spread = ResourceRequest(4, 4, gpus=1, placement="STRICT_SPREAD")
    assert require_feasible(spread, cluster).nodes == 4


def test_memory_of_a_worker_limits() -> None:
    with pytest.raises(InfeasibleError, match="no node has the memory"):
        require_feasible(workers(1, memory_bytes=64e9), LAPTOP)


def test_the_request_of_a_config_is_the_same_in_other_words() -> None:
    config = ResourcesConfig(
        workers=IntRange(2, 4), cpus_per_worker=3, memory_per_worker_gb=2, placement="SPREAD"
    )
    request = ResourceRequest.of(config)
    assert request == ResourceRequest(2, 4, 3, 0, 2e9, None, "SPREAD")


def test_a_request_without_any_resource_is_refused() -> None:
    with pytest.raises(ConfigError, match="both 0"):
        ResourceRequest(cpus=0, gpus=0)


quantities = st.integers(0, 12)
shapes = st.builds(NodeShape, cpus=st.integers(0, 12), gpus=quantities)


@given(nodes=st.lists(shapes, max_size=5), cpus=st.integers(1, 5), gpus=st.integers(0, 3))
def test_packing_equals_filling_nodes_one_worker_at_a_time(
    nodes: list[NodeShape], cpus: int, gpus: int
) -> None:
    fitted = 0
    for node in nodes:
        free_cpus, free_gpus = node.cpus, node.gpus
        while free_cpus >= cpus and free_gpus >= gpus:
            free_cpus, free_gpus = free_cpus - cpus, free_gpus - gpus
            fitted += 1
    request = ResourceRequest(1, 1000, cpus=cpus, gpus=gpus)
    assert place(request, ClusterResources(tuple(nodes))).workers == fitted


@given(nodes=st.lists(shapes, min_size=1, max_size=4), request_workers=st.integers(1, 20))
def test_every_nearest_choice_that_a_refusal_names_can_be_placed(
    nodes: list[NodeShape], request_workers: int
) -> None:
    cluster = ClusterResources(tuple(nodes))
    request = workers(request_workers, cpus=4, gpus=2)
    try:
        require_feasible(request, cluster)
    except InfeasibleError as refusal:
        nearest = str(refusal).rpartition("; ")[2]
        if nearest == "start nodes first":
            assert all(node.cpus == 0 for node in nodes)
            return
        _, _, settings = nearest.partition(": ")
        asked = dict(part.split("=") for part in settings.split())
        again = workers(
            int(asked["workers"]),
            cpus=float(asked.get("cpus_per_worker", 4)),
            gpus=float(asked.get("gpus_per_worker", 2)),
        )
        require_feasible(again, cluster)


def test_a_third_of_a_cpu_fits_three_times() -> None:
    assert workers_on(NodeShape(cpus=0.3), ResourceRequest(cpus=0.1)) == 3
    assert math.isclose(NodeShape(cpus=0.3).cpus, 0.3)
