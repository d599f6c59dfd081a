"""Can workers on several nodes all write where a run is stored?

A run on one machine may live in any local folder. On several nodes it needs an object store or a
folder on a network file system; without either, Ray fails after the first checkpoint was written.
Where all nodes share a disk (pods on one machine) only the user knows it, and says so by
HELIOSTAT_SHARED_STORAGE.
"""

from __future__ import annotations

from pathlib import Path

from heliostat.cluster.resources import ClusterResources
from heliostat.config.settings import settings
from heliostat.errors import UserError
from heliostat.storage import Location

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "cifs", "smb3", "9p", "afs"}
)
"""Types of mounts that other nodes see too; every `fuse.NAME` counts as well (buckets, JuiceFS)."""


def require_shared_storage(
    location: Location, cluster: ClusterResources, setting: str = "out"
) -> None:
    """Refuse a local folder as the storage of workers on several nodes.

    Args:
        location: where the run is stored, or what it prepares for its workers.
        cluster: where workers and the driver may run.
        setting: what says where that is: `out`, a key of the config, or a variable.

    Raises:
        UserError: the folder is on this machine's own disk and there are several nodes.
    """
    nodes = len(cluster.nodes)
    if (
        (nodes <= 1 and not cluster.groups)
        or not location.is_local
        or is_network_mount(location.local_path)
        or is_declared_shared(location.local_path)
    ):
        return
    growth = " and may get more" if cluster.groups else ""
    uri = "a URI such as s3://bucket/runs, or " if setting == "out" else ""
    shared = settings().shared_storage
    parent = location.local_path.parent
    remedy = (
        f"if the nodes do share this disk, set HELIOSTAT_SHARED_STORAGE={parent}"
        if shared is None
        else f"HELIOSTAT_SHARED_STORAGE says that all nodes see {shared}, so choose a folder there"
    )
    raise UserError(
        f"{setting} leads to {location.local_path} on this machine's own disk, but {cluster.name} "
        f"has {nodes} nodes{growth}: give {uri}a folder on a network file system that is mounted "
        f"at the same path on every node; {remedy}"
    )


def is_declared_shared(path: Path) -> bool:
    """Whether a path, which need not exist yet, lies in the folder said to be shared."""
    shared = settings().shared_storage
    return shared is not None and path.resolve().is_relative_to(shared.resolve())


def is_network_mount(path: Path) -> bool:
    """Whether a path, which need not exist yet, lies on a network file system."""
    import psutil

    kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        if folder in kinds:
            return is_network_type(kinds[folder])
    return False


def is_network_type(file_system: str) -> bool:
    """Whether a mount of this type is seen by other machines."""
    kind = file_system.lower()
    return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")
