"""Fixtures shared by every test: one local Ray cluster a session, and a home of its own."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def private_home() -> Iterator[Path]:
    """Keep tokens, caches and tracker files of the tests out of the user's home."""
    with tempfile.TemporaryDirectory(prefix="hs-") as folder:
        os.environ["HELIOSTAT_HOME"] = folder
        token = Path(folder) / "ray_token"
        token.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ["TORCH_EXTENSIONS_DIR"] = str(Path(folder) / "torch_extensions")
        yield Path(folder)


@pytest.fixture(scope="session")
def ray_cluster(private_home: Path) -> Iterator[None]:
    """A local Ray cluster with 4 logical CPUs on however many there are."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray

    ray.init(num_cpus=4, include_dashboard=True, log_to_driver=False, dashboard_port=0)
    yield
    ray.shutdown()
