"""What `doctor` checks of Ray: its version, the cluster it would use, and whether that answers."""

from __future__ import annotations

import socket
import sys

from heliostat.cluster import ray_internals
from heliostat.cluster.cluster_reader import logical_cpus, read_cluster
from heliostat.cluster.finding import Finding
from heliostat.cluster.ray_cluster import split_address
from heliostat.config.settings import settings
from heliostat.errors import UserError

_PROBE_TIMEOUT_S = 3.0
_VERSIONS_TIMEOUT_S = 10.0
_MOST_SOCKET_PATH = 107
# What Ray appends to its temporary folder for its longest socket name.
_SOCKET_PATH_BYTES = 68


def check_ray() -> list[Finding]:
    """The cluster of this process, of RAY_ADDRESS or of `ray start`, else one of our own."""
    import ray

    if ray.is_initialized():
        return [Finding("ray", "ok", f"connected: {read_cluster().describe()}")]
    address = settings().ray_address
    if address is not None and address not in ("auto", "local"):
        return [_check_cluster(address, "RAY_ADDRESS")]
    left = ray_internals.started_cluster_address()
    if left is not None and address != "local":
        return [_check_cluster(left, "the last `ray start` here")]
    return [_check_startable(ray.__version__)]


def _check_cluster(address: str, origin: str) -> Finding:
    import ray

    try:
        socket.create_connection(split_address(address), timeout=_PROBE_TIMEOUT_S).close()
    except (UserError, OSError) as error:
        return Finding(
            "ray",
            "fail",
            f"no cluster answers at {address} ({origin}): {error}",
            "start it, or unset RAY_ADDRESS to use this machine alone (`ray stop` forgets a dead "
            "cluster)",
        )
    versions = ray_internals.cluster_versions(address, _VERSIONS_TIMEOUT_S)
    if versions is None:
        return Finding(
            "ray",
            "fail",
            f"something listens at {address} ({origin}), but not a Ray cluster that answers us",
            "check the port (6379 by default) and the cluster's token (RAY_AUTH_TOKEN_PATH)",
        )
    theirs, python = versions
    ours = ".".join(str(part) for part in sys.version_info[:3])
    if versions != (ray.__version__, ours):
        return Finding(
            "ray",
            "fail",
            f"the cluster at {address} runs Ray {theirs} on Python {python}, this environment Ray "
            f"{ray.__version__} on Python {ours}",
            "use the cluster's own image or environment here, or submit with `ray job submit`",
        )
    return Finding("ray", "ok", f"the cluster at {address} ({origin}) answers, Ray {theirs}")


def _check_startable(version: str) -> Finding:
    """What keeps a local cluster from starting, short of starting one (5 s)."""
    folder = ray_internals.sessions_folder()
    parent = folder if folder.exists() else folder.parent
    if len(str(folder)) + _SOCKET_PATH_BYTES > _MOST_SOCKET_PATH:
        return Finding(
            "ray", "fail", f"{folder} is too long a name for Ray's sockets", "use a shorter one"
        )
    try:
        (parent / ".heliostat-doctor").touch()
        (parent / ".heliostat-doctor").unlink()
    except OSError as error:
        return Finding(
            "ray",
            "fail",
            f"{parent} cannot be written ({error.strerror}), and Ray keeps its sessions there",
            f"take {folder} over from the user who made it, or delete it",
        )
    return Finding(
        "ray", "ok", f"Ray {version} will start a cluster of its own with {logical_cpus()} CPUs"
    )
