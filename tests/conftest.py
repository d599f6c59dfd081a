"""Fixtures shared by every test: one local Ray cluster a session, and a home of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliostat.config.settings import put_on_path

# Test modules, and the Ray workers that they start, import what is shared by name.
put_on_path(Path(__file__).parent / "support")

S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Set before Ray starts, so that its workers have them too."""


@pytest.fixture(scope="session", autouse=True)
def private_home() -> Iterator[Path]:
    """Keep tokens, caches and tracker files of the tests out of the user's home."""
    # Ray's processes may still write their logs when the session ends.
    with tempfile.TemporaryDirectory(prefix="hs-", ignore_cleanup_errors=True) as folder:
        os.environ["HELIOSTAT_HOME"] = folder
        # Sessions beside this one, and clusters of the user's, are not found then.
        os.environ["RAY_TMPDIR"] = folder
        token = Path(folder) / "ray_token"
        token.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ.update(S3_CREDENTIALS)
        os.environ["TORCH_EXTENSIONS_DIR"] = str(Path(folder) / "torch_extensions")
        yield Path(folder)


@pytest.fixture(scope="session")
def ray_cluster(private_home: Path) -> Iterator[None]:
    """A local Ray cluster with 4 logical CPUs on however many there are, our own as on a laptop."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray

    from heliostat.cluster.ray_cluster import share_cluster

    context = ray.init(num_cpus=4, include_dashboard=True, log_to_driver=False, dashboard_port=0)
    share_cluster(context.address_info["gcs_address"])
    yield
    share_cluster(None)
    ray.shutdown()


@pytest.fixture
def somebody_elses_cluster(ray_cluster: None) -> Iterator[None]:
    """The same cluster as one that `ray start` made: other drivers come and go, and so do nodes."""
    from heliostat.cluster.ray_cluster import own_address, share_cluster

    address = own_address()
    share_cluster(None)
    yield
    share_cluster(address)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
