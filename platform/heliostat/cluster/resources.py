"""What a training asks for and what a cluster has, as plain numbers.

A cluster is the nodes that run and the groups of nodes that an autoscaler may still add. Nothing
here asks Ray: `ray_cluster.read_cluster` reads a connected cluster, `cluster_description` a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from heliostat.config.resources import ResourcesConfig
from heliostat.errors import ConfigError


@dataclass(frozen=True)
class ResourceRequest:
    """A group of equal workers that must run at the same time."""

    workers_min: int = 1
    """Fewest workers the training can start with; equal to workers_max unless elastic."""
    workers_max: int = 1
    cpus: float = 1
    """CPUs of each worker."""
    gpus: float = 0
    """GPUs of each worker."""
    memory_bytes: float = 0
    """Host memory that each worker reserves; 0 reserves none."""
    accelerator_type: str | None = None
    """Ray's accelerator type that every worker needs, such as `H100`; None takes any."""
    placement: str = "PACK"
    """Ray's placement strategy: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD."""

    @classmethod
    def of(cls, config: ResourcesConfig) -> ResourceRequest:
        """What a job's `resources` section asks for."""
        return cls(
            workers_min=config.workers.low,
            workers_max=config.workers.high,
            cpus=config.cpus_per_worker,
            gpus=config.gpus_per_worker,
            memory_bytes=(config.memory_per_worker_gb or 0) * 1e9,
            accelerator_type=config.accelerator_type,
            placement=config.placement,
        )

    def __post_init__(self) -> None:
        if not 1 <= self.workers_min <= self.workers_max:
            raise ConfigError(
                f"workers is {self.workers_min} to {self.workers_max}, "
                "but it must be 1 or more, and the smaller number first"
            )
        for name, value in (
            ("cpus", self.cpus),
            ("gpus", self.gpus),
            ("memory_bytes", self.memory_bytes),
        ):
            if value < 0:
                raise ConfigError(f"{name} of a worker is {value:g}, but it cannot be negative")
        if self.cpus == 0 and self.gpus == 0:
            raise ConfigError("a worker needs a CPU or a GPU, but cpus and gpus are both 0")


@dataclass(frozen=True)
class NodeShape:
    """What one node has to give, whether or not it is taken just now."""

    cpus: float
    gpus: float = 0
    memory_bytes: float = 0
    """Host memory that Ray hands out; 0 when unknown, which then limits nothing."""
    accelerator_types: frozenset[str] = frozenset()
    """Ray's accelerator types of its GPUs, such as `H100`."""

    def describe(self) -> str:
        """`96 CPUs, 8 GPUs (H100), 1000 GB memory`."""
        parts = [_count(self.cpus, "CPU"), _count(self.gpus, "GPU")]
        if self.accelerator_types:
            parts[1] += f" ({', '.join(sorted(self.accelerator_types))})"
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 1e9:.4g} GB memory")
        return ", ".join(parts)


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one shape that an autoscaler may still start."""

    shape: NodeShape
    more: int | None
    """How many more can be started; None when there is no limit."""
    name: str = ""


@dataclass(frozen=True)
class ClusterResources:
    """Every node that runs, and every node that could be added."""

    nodes: tuple[NodeShape, ...]
    groups: tuple[NodeGroup, ...] = field(default=())
    name: str = "the cluster"
    """How messages call it: `this machine`, `the cluster at 10.0.0.1:6379`."""

    @property
    def cpus(self) -> float:
        """CPUs of the nodes that run."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of the nodes that run."""
        return sum(node.gpus for node in self.nodes)

    @property
    def device_names(self) -> frozenset[str]:
        """The kinds of accelerator anywhere in the cluster, those that could be added included."""
        shapes = [*self.nodes, *(group.shape for group in self.groups)]
        return frozenset(name for shape in shapes for name in shape.accelerator_types)

    def describe(self) -> str:
        """One phrase with every node: `2 nodes with 8 CPUs, 0 GPUs; up to 4 more with ...`."""
        parts = [
            f"1 node with {shape.describe()}"
            if count == 1
            else f"{count} nodes with {shape.describe()} each"
            for shape, count in Counter(self.nodes).items()
        ]
        for group in self.groups:
            if group.more != 0:
                limit = "any number of" if group.more is None else f"up to {group.more}"
                parts.append(f"{limit} more with {group.shape.describe()} each")
        return "; ".join(parts) if parts else "no node"


def shape_of_resources(resources: Mapping[str, object]) -> NodeShape:
    """A node from Ray's resource names (`CPU`, `GPU`, `memory`, `accelerator_type:H100`)."""

    def amount(name: str) -> float:
        value = resources.get(name, 0)
        if not isinstance(value, int | float):
            raise ConfigError(f"resource {name} of a node is {value!r}, but it must be a number")
        return float(value)

    prefix = "accelerator_type:"
    return NodeShape(
        cpus=amount("CPU"),
        gpus=amount("GPU"),
        memory_bytes=amount("memory"),
        accelerator_types=frozenset(
            name.removeprefix(prefix) for name in resources if name.startswith(prefix)
        ),
    )


def unique_shapes(shapes: Iterable[NodeShape]) -> tuple[NodeShape, ...]:
    """The different shapes, in order of first appearance."""
    return tuple(dict.fromkeys(shapes))


def _count(value: float, noun: str) -> str:
    return f"{value:g} {noun}" if value == 1 else f"{value:g} {noun}s"
