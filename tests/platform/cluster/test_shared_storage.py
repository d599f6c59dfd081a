"""Local folders are refused as storage of several nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.cluster.cluster_description import parse_cluster
from heliostat.cluster.resources import ClusterResources, NodeGroup, NodeShape
from heliostat.cluster.shared_storage import is_network_type, require_shared_storage
from heliostat.errors import UserError
from heliostat.storage import Location


def test_a_local_folder_is_refused_on_several_nodes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 nodes: give a URI such as s3://"):
        require_shared_storage(Location.of(tmp_path), parse_cluster("nodes=2,cpus=4"))


def test_what_a_run_prepares_for_its_workers_must_be_seen_by_them_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"HELIOSTAT_HOME leads to .*has 2 nodes: give a folder"):
        require_shared_storage(
            Location.of(tmp_path), parse_cluster("nodes=2,cpus=4"), "HELIOSTAT_HOME"
        )


def test_a_cluster_that_may_grow_needs_shared_storage_too(tmp_path: Path) -> None:
    cluster = ClusterResources((NodeShape(4),), (NodeGroup(NodeShape(8), more=1),))
    with pytest.raises(UserError, match="may get more"):
        require_shared_storage(Location.of(tmp_path), cluster)


def test_one_node_or_an_object_store_is_fine(tmp_path: Path) -> None:
    require_shared_storage(Location.of(tmp_path / "not yet there"), parse_cluster("cpus=4"))
    require_shared_storage(Location.of("s3://bucket/runs"), parse_cluster("nodes=2,cpus=4"))


def test_a_folder_said_to_be_shared_is_fine_and_only_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOSTAT_SHARED_STORAGE", str(tmp_path / "storage"))
    cluster = parse_cluster("nodes=2,cpus=4")
    require_shared_storage(Location.of(tmp_path / "storage" / "runs"), cluster)
    with pytest.raises(UserError, match=r"HELIOSTAT_SHARED_STORAGE says .* choose a folder there"):
        require_shared_storage(Location.of(tmp_path / "storage-of-another" / "runs"), cluster)


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("nfs4", True), ("lustre", True), ("fuse.gcsfuse", True), ("ext4", False), ("overlay", False)],
)
def test_network_file_systems_are_told_from_disks(kind: str, shared: bool) -> None:
    assert is_network_type(kind) is shared
