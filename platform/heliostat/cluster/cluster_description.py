"""Clusters that are not connected: read from a short text or from a file.

The text is one group of equal nodes per `;`:

    nodes=4,cpus=96,gpus=8,memory=1000GB,device=H100 SXM; nodes=1,cpus=8

A file is a `ray up` cluster YAML, or a Kubernetes manifest with a RayCluster, RayJob or RayService.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TypeGuard

from heliostat.cluster.ray_internals import UNLIMITED, node_types_of_ray_cluster
from heliostat.cluster.resources import (
    ClusterResources,
    NodeGroup,
    NodeShape,
    shape_of_resources,
)
from heliostat.errors import ConfigError

_UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_KEYS = ("nodes", "cpus", "gpus", "memory", "device")


def parse_cluster(text: str) -> ClusterResources:
    """Read a cluster description, or the YAML file it names.

    Raises:
        ConfigError: the text is neither.
    """
    if text.endswith((".yaml", ".yml")):
        return _read_file(Path(text))
    nodes: list[NodeShape] = []
    for part in text.split(";"):
        if part.strip():
            nodes.extend(_parse_group(part.strip()))
    if not nodes:
        raise ConfigError(f"cluster is {text!r}, but expected such as nodes=4,cpus=96,gpus=8")
    return ClusterResources(nodes=tuple(nodes), name="the described cluster")


def parse_bytes(text: str) -> float:
    """`512GiB`, `1.5 TB` or plain bytes as a number of bytes."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"memory is {text!r}, but expected a number with GiB, GB, MiB or TiB")
    return _number("memory", match[1]) * _UNITS[match[2]]


def _parse_group(text: str) -> list[NodeShape]:
    values: dict[str, str] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"cluster description has {item.strip()!r}, expected KEY=VALUE with "
                f"{', '.join(_KEYS)}{hint}"
            )
        values[key] = value.strip()
    if "cpus" not in values:
        raise ConfigError(f"cluster description {text!r} lacks cpus, the CPUs of each node")
    count = _number("nodes", values.get("nodes", "1"))
    if count != int(count) or count < 1:
        raise ConfigError(f"nodes is {values['nodes']}, but it must be a whole number above 0")
    shape = NodeShape(
        cpus=_number("cpus", values["cpus"]),
        gpus=_number("gpus", values.get("gpus", "0")),
        memory_bytes=parse_bytes(values.get("memory", "0")),
        accelerator_types=frozenset({values["device"]} if "device" in values else ()),
    )
    return [shape] * int(count)


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{key} is {text!r}, but it must be a number") from None


def _read_file(path: Path) -> ClusterResources:
    import yaml

    try:
        documents = list(yaml.safe_load_all(path.read_text()))
    except OSError as error:
        raise ConfigError(f"cluster file {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"cluster file {path} is not valid YAML: {error}") from None
    for document in documents:
        if not _is_table(document):
            continue
        if "available_node_types" in document:
            return _of_ray_up(document, f"the cluster of {path}")
        spec = _kuberay_spec(document)
        if spec is not None:
            return of_ray_cluster(spec, f"the cluster of {path}")
    raise ConfigError(
        f"cluster file {path} describes no cluster: expected available_node_types (`ray up`) or a "
        "RayCluster, RayJob or RayService"
    )


def of_ray_cluster(spec: dict[str, object], name: str) -> ClusterResources:
    """A cluster from the `spec` of a KubeRay RayCluster."""
    types = node_types_of_ray_cluster(spec)
    # Without the autoscaler the groups keep the replicas that they were given.
    scales = bool(spec.get("enableInTreeAutoscaling"))
    nodes: list[NodeShape] = []
    groups: list[NodeGroup] = []
    for node_type in types:
        shape = shape_of_resources(node_type.resources)
        running = 1 if node_type.is_head else node_type.least if scales else node_type.replicas
        nodes.extend([shape] * running)
        if scales and not node_type.is_head and node_type.most > running:
            is_unlimited = node_type.most >= UNLIMITED
            more = None if is_unlimited else node_type.most - running
            groups.append(NodeGroup(shape, more, node_type.name))
    return ClusterResources(tuple(nodes), tuple(groups), name=name)


def _of_ray_up(document: dict[str, object], name: str) -> ClusterResources:
    nodes: list[NodeShape] = []
    groups: list[NodeGroup] = []
    types = document["available_node_types"]
    if not _is_table(types):
        raise ConfigError(f"{name}: available_node_types must be a table of node types")
    for kind, node_type in types.items():
        if not _is_table(node_type):
            raise ConfigError(f"{name}: available_node_types.{kind} must be a table")
        resources = node_type.get("resources")
        shape = shape_of_resources(resources if _is_table(resources) else {})
        least = _whole(node_type.get("min_workers", 0))
        # `max_workers` of a node type defaults to the cluster's, and that to 2 (Ray's schema).
        most = _whole(node_type.get("max_workers", document.get("max_workers", 2)))
        nodes.extend([shape] * (least + (kind == document.get("head_node_type"))))
        if most > least:
            groups.append(NodeGroup(shape=shape, more=most - least, name=kind))
    return ClusterResources(tuple(nodes), tuple(groups), name=name)


def _kuberay_spec(document: dict[str, object]) -> dict[str, object] | None:
    spec = document.get("spec")
    if not _is_table(spec):
        return None
    match document.get("kind"):
        case "RayCluster":
            return spec
        case "RayJob":
            inner = spec.get("rayClusterSpec")
        case "RayService":
            inner = spec.get("rayClusterConfig")
        case _:
            return None
    return inner if _is_table(inner) else None


def _is_table(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _whole(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ConfigError(f"a number of workers is {value!r}, but it must be a whole number")
    return value
