"""The private names of Ray that we need, in one place (read in ray 2.60.0).

Ray has no public way to ask for the autoscaler's node groups, for the address of the cluster that
`ray start` left on this machine, for the files that `ray job submit` would pack, or whether an
authentication token is at hand. A test fails when one of these names changes.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

logger = logging.getLogger(__name__)

NODE_GROUP_LABEL = "ray.io/node-group"
"""The label of a node that names its autoscaler group (`ray._raylet.RAY_NODE_GROUP_KEY`)."""

UNLIMITED = 2**31 - 1
"""What KubeRay takes for `maxReplicas` where a manifest does not say."""

_ASK_VERSIONS = """
import sys
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._raylet import GcsClient
record = get_cluster_metadata(GcsClient(address=sys.argv[1]))
print(record["ray_version"], record["python_version"])
"""
QUIET_CONFIG = {
    # Workers begin when they are asked for; those begun in advance that nobody needs never end.
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
    "memory_monitor_refresh_ms": 1000,
}
"""Ray's own settings for a cluster of one command: less to do for processes that only wait."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_API_TIMEOUT_S = 3.0
# Ray's traversal logs every ignore file it reads; an error it logs is raised as well.
_QUIET = logging.Logger("ray-packaging", level=logging.CRITICAL)


@dataclass(frozen=True)
class AutoscalerGroup:
    """One kind of node in the autoscaler's configuration."""

    name: str
    resources: dict[str, float]
    most: int | None
    """Nodes of this kind at most; None when there is no limit."""


def autoscaler_groups() -> tuple[AutoscalerGroup, ...]:
    """What the connected cluster's autoscaler may start; empty when it has not said."""
    from ray._private.state import state

    config = state.get_cluster_config()
    return () if config is None else groups_of_config(config)


def groups_of_config(config: ClusterConfig) -> tuple[AutoscalerGroup, ...]:
    """The node groups of what an autoscaler reports to Ray's control store."""
    return tuple(
        AutoscalerGroup(
            name=group.name,
            resources={name: float(value) for name, value in group.resources.items()},
            # -1 stands for no limit (`GlobalState._calculate_max_resource_from_cluster_config`).
            most=None if group.max_count == -1 else int(group.max_count),
        )
        for group in config.node_group_configs
    )


@dataclass(frozen=True)
class NodeType:
    """One kind of pod of a KubeRay RayCluster."""

    name: str
    resources: dict[str, float]
    least: int
    most: int
    replicas: int
    """How many there are without autoscaling."""
    is_head: bool


def node_types_of_ray_cluster(spec: dict[str, Any]) -> tuple[NodeType, ...]:
    """What Ray's own autoscaler reads from the `spec` of a RayCluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _node_type_from_group_spec

    def read(group: dict[str, Any], is_head: bool) -> NodeType:
        # The manifest may leave out what the operator fills in.
        full = {"minReplicas": 0, "maxReplicas": UNLIMITED, "rayStartParams": {}, **group}
        node_type = _node_type_from_group_spec(full, is_head)
        return NodeType(
            name="head" if is_head else str(group["groupName"]),
            resources=node_type["resources"],
            least=node_type["min_workers"],
            most=node_type["max_workers"],
            replicas=int(group.get("replicas", full["minReplicas"])) * group.get("numOfHosts", 1),
            is_head=is_head,
        )

    workers = spec.get("workerGroupSpecs") or []
    return (read(spec["headGroupSpec"], True), *(read(group, False) for group in workers))


def own_ray_cluster_spec() -> dict[str, Any] | None:
    """The RayCluster that this head pod belongs to, as its API server knows it.

    KubeRay grants the head pod this right exactly when the cluster scales by itself, since the
    autoscaler runs in it; everywhere else the answer is None.
    """
    if not _POD_NAMESPACE.is_file():
        return None
    head = re.fullmatch(r"(.+)-head(-[a-z0-9]+)?", socket.gethostname())
    if head is None:
        return None
    import requests
    from ray.autoscaler._private.kuberay.node_provider import (
        load_k8s_secrets,
        url_from_resource,
    )

    try:
        headers, verify, certificate = load_k8s_secrets()
        answer = requests.get(
            url_from_resource(
                namespace=_POD_NAMESPACE.read_text().strip(), path=f"rayclusters/{head[1]}"
            ),
            headers=headers,
            timeout=_API_TIMEOUT_S,
            verify=verify,
            cert=certificate,
        )
        answer.raise_for_status()
    except (OSError, requests.RequestException) as error:
        logger.debug("the RayCluster of this pod cannot be read: %s", error)
        return None
    spec: dict[str, Any] = answer.json()["spec"]
    return spec


@contextmanager
def without_helpers() -> Iterator[None]:
    """Start a cluster without what only a shared one needs, for the length of the block.

    These are the autoscaler's monitor, the server of the dashboard, which Ray starts even without
    the dashboard itself, and the monitor that carries workers' output to the driver. Each is a
    Python process that imports for a second and then looks for work several times a second. The
    agent, without which no node lives, counts the machine's processes once a minute then, not every
    five seconds.
    """
    from ray._private.node import Node

    names = ("start_monitor", "start_api_server", "start_log_monitor")
    originals = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, _start_nothing)
    # Child processes inherit it; who has set it knows better.
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Node, name, original)


def _start_nothing(node: object, **_: object) -> None:
    """In the place of a method of Ray's `Node` that starts a process."""


def sessions_folder() -> Path:
    """Where a cluster of this machine keeps its sessions; RAY_TMPDIR and TMPDIR move it."""
    from ray._common.utils import get_default_ray_temp_dir

    return Path(get_default_ray_temp_dir())


def started_cluster_address() -> str | None:
    """The cluster that the last `ray start` on this machine made or joined, running or not."""
    from ray._private.services import find_bootstrap_address

    address = find_bootstrap_address(None)
    return str(address) if address else None


def cluster_versions(address: str, timeout_s: float) -> tuple[str, str] | None:
    """Ray's and Python's version of a running cluster; None when no Ray answers there in time.

    Asked by a process of its own: a client waits 40 s for what listens but is no Ray, cannot be
    interrupted, and writes to standard error.
    """
    command = [sys.executable, "-c", _ASK_VERSIONS, address]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        logger.debug("no Ray answers at %s: %s", address, error)
        return None
    ray_version, python_version = answer.stdout.split()
    return ray_version, python_version


def usable_cpus() -> int:
    """CPUs that Ray would count on this machine, container limits included."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True))


def has_auth_token() -> bool:
    """Whether Ray finds an authentication token (variables, then `~/.ray/auth_token`).

    Raises:
        ray.exceptions.AuthenticationError: RAY_AUTH_TOKEN_PATH names a file that is not there.
    """
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    return bool(loader.has_token(ignore_auth_mode=True))


def forget_auth_token() -> None:
    """Make Ray look for its authentication token again."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()


def use_auth_token() -> None:
    """Send the authentication token, if there is one, unless RAY_AUTH_MODE says otherwise."""
    from ray._private.authentication import authentication_token_setup as setup

    # It tells every time that authentication is on.
    setup.logger.setLevel(logging.ERROR)
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def remove_orphaned_placement_groups() -> int:
    """Give back what actors of this job had placed before they died; returns how many places.

    Ray keeps a placement group as long as the job lives, whoever made it. Ray Train's own cleaner
    asks the dashboard, which a cluster of ours does not have.
    """
    import ray
    from ray._private.state import state
    from ray._raylet import ActorID, PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    removed = 0
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        if (
            group.creator_job_id == job
            # What the driver itself has placed counts as that of a dead actor.
            and not ActorID(group.creator_actor_id).is_nil()
            and group.creator_actor_dead
            and group.state != PlacementGroupTableData.REMOVED
        ):
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
            removed += 1
    return removed


def upload_limit_bytes() -> int:
    """The largest body that Ray's dashboard accepts, and so the largest submitted folder."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    return int(DASHBOARD_CLIENT_MAX_SIZE)


def packed_files(folder: Path) -> Iterator[Path]:
    """The files of a working directory that Ray packs: its ignore files and defaults respected."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: list[Path] = []

    def note(path: Path) -> None:
        if path.is_file():
            found.append(path)

    _dir_travel(
        folder,
        [_get_excludes(folder, get_runtime_env_default_excludes())],
        note,
        include_gitignore=True,
        logger=_QUIET,
    )
    yield from found
