"""Clusters described by a text or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.cluster.cluster_description import parse_bytes, parse_cluster
from heliostat.cluster.cluster_reader import node_limits, remaining_groups
from heliostat.cluster.resources import NodeGroup, NodeShape
from heliostat.errors import ConfigError

RAY_UP = """
cluster_name: example
max_workers: 4
head_node_type: head
available_node_types:
  head: {resources: {CPU: 8}, node_config: {}}
  gpu: {resources: {CPU: 96, GPU: 8, "accelerator_type:H100": 1}, min_workers: 1, max_workers: 3}
"""

RAY_CLUSTER = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: example}
spec:
  enableInTreeAutoscaling: SCALES
  headGroupSpec:
    rayStartParams: {num-cpus: "0"}
    template: {spec: {containers: [{name: h, resources: {limits: {cpu: "4", memory: 8Gi}}}]}}
  workerGroupSpecs:
    - groupName: gpu
      replicas: 2
      minReplicas: 1
      maxReplicas: 5
      rayStartParams: {}
      template:
        spec:
          containers:
            - name: w
              resources: {limits: {cpu: "16", memory: 64Gi, nvidia.com/gpu: "4"}}
"""


def test_text_describes_groups_of_nodes() -> None:
    cluster = parse_cluster("nodes=4,cpus=96,gpus=8,memory=1000GB,device=H100 SXM; cpus=8")
    assert (len(cluster.nodes), cluster.cpus, cluster.gpus) == (5, 4 * 96 + 8, 32)
    assert cluster.nodes[0].memory_bytes == 1e12
    assert cluster.device_names == {"H100 SXM"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpu=4", "did you mean cpus"),
        ("gpus=4", "lacks cpus"),
        ("cpus=many", "must be a number"),
        ("nodes=0,cpus=1", "whole number above 0"),
        ("cpus=1,memory=4XB", "expected a number with GiB"),
        ("", "expected such as"),
    ],
)
def test_a_wrong_text_is_refused_with_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_cluster(text)


def test_sizes_keep_decimal_and_binary_apart() -> None:
    assert parse_bytes("1GB") == 1e9
    assert parse_bytes("1 GiB") == 2**30


def test_a_ray_up_file_gives_head_minimum_and_growth(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(RAY_UP)
    cluster = parse_cluster(str(path))
    assert [node.cpus for node in cluster.nodes] == [8, 96]
    assert cluster.nodes[1].accelerator_types == {"H100"}
    growth = {group.name: group.more for group in cluster.groups}
    assert growth == {"head": 4, "gpu": 2}


def test_a_ray_cluster_manifest_gives_minimum_and_growth(tmp_path: Path) -> None:
    path = tmp_path / "raycluster.yaml"
    path.write_text(RAY_CLUSTER.replace("SCALES", "true"))
    cluster = parse_cluster(str(path))
    assert [(node.cpus, node.gpus) for node in cluster.nodes] == [(0, 0), (16, 4)]
    assert [(group.name, group.more) for group in cluster.groups] == [("gpu", 4)]


def test_without_autoscaling_a_manifest_has_its_replicas(tmp_path: Path) -> None:
    path = tmp_path / "raycluster.yaml"
    path.write_text(RAY_CLUSTER.replace("SCALES", "false"))
    cluster = parse_cluster(str(path))
    assert cluster.gpus == 8
    assert cluster.groups == ()


def test_a_file_without_a_cluster_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("kind: Service\nspec: {}\n")
    with pytest.raises(ConfigError, match="describes no cluster"):
        parse_cluster(str(path))


def test_running_nodes_count_against_their_group_by_label_or_shape() -> None:
    gpu, cpu = NodeShape(cpus=8, gpus=4), NodeShape(cpus=8)
    limits = (NodeGroup(gpu, 3, "gpu"), NodeGroup(cpu, None, "cpu"))
    left = remaining_groups((gpu, gpu, cpu), ("gpu", None, None), limits)
    assert [(group.name, group.more) for group in left] == [("gpu", 1), ("cpu", None)]
    assert remaining_groups((gpu,) * 3, ("gpu",) * 3, limits[:1]) == ()


def test_limits_of_a_description_include_its_minimum(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(RAY_UP)
    limits = {group.name: group.more for group in node_limits(parse_cluster(str(path)))}
    assert limits["gpu"] == 3
