"""Connecting to Ray: quiet, with room for two workers, and quick to refuse what cannot work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heliostat.cluster.ray_cluster import (
    connect,
    extensions_folder,
    split_address,
    worker_environment,
    worker_runtime_env,
)
from heliostat.errors import UserError

DRIVER = """
import signal
import sys
from heliostat.cluster.cluster_reader import read_cluster, this_machine
from heliostat.cluster.feasibility import InfeasibleError, ResourceRequest, require_feasible
from heliostat.cluster.ray_cluster import connect, owns_cluster
from heliostat.cluster.doctor_ray import check_ray
from heliostat.cluster.ray_internals import cluster_versions
import ray

signal.signal(signal.SIGTERM, signal.default_int_handler)
connection = connect()
again = connect()
assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler, "Ray's handler stayed"

@ray.remote
def imported():
    import my_model
    return my_model.ANSWER

assert ray.get(imported.remote()) == 42, "the current folder is not on the workers' path"
cluster = read_cluster()
assert len(cluster.nodes) == 1
assert cluster.cpus == this_machine().cpus >= 2
assert connection.is_own and not again.is_own
assert owns_cluster()
assert connection.address == again.address
assert connection.dashboard_url is None
assert check_ray()[0].status == "ok"
assert cluster_versions(connection.address, 60.0)[0] == ray.__version__
try:
    require_feasible(ResourceRequest(100, 100, gpus=1), cluster)
except InfeasibleError as error:
    assert "this machine has 1 node" in str(error)
else:
    raise AssertionError("not refused")
connection.close()
assert not ray.is_initialized()
assert not owns_cluster()
"""


def test_a_cluster_of_our_own_is_quiet_roomy_and_leaves_the_home_folder_clean(
    tmp_path: Path,
) -> None:
    work, home, cache = tmp_path / "work", tmp_path / "home", tmp_path / "cache"
    for folder in (work, home, cache):
        folder.mkdir()
    (work / "my_model.py").write_text("ANSWER = 42\n")
    (work / "driver.py").write_text(DRIVER)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "HELIOSTAT_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", "import runpy; runpy.run_path('driver.py', run_name='__main__')"],
        cwd=work,
        env={**inherited, "HOME": str(home), "HELIOSTAT_HOME": str(cache), "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
    assert not (home / ".ray").exists()
    token = cache / "ray_token"
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "submit the job"),
        ("http://head:8265", "submit the job"),
        ("head", "expected HOST:PORT"),
        (":6379", "expected HOST:PORT"),
    ],
)
def test_addresses_of_another_kind_are_refused(address: str, message: str) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected to a cluster already")
    with pytest.raises(UserError, match=message):
        connect(address)


def test_a_cluster_that_does_not_answer_is_refused_in_seconds() -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected to a cluster already")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(UserError, match="no Ray cluster answers"):
            connect(address)
    assert time.monotonic() - start < 5


def test_a_token_file_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected to a cluster already")
    missing = tmp_path / "no-token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(missing))
    with pytest.raises(UserError, match=f"{missing.name}.*unset RAY_AUTH_TOKEN_PATH"):
        connect("local")


def test_addresses_are_split_at_the_last_colon() -> None:
    assert split_address("10.0.0.1:6379") == ("10.0.0.1", 6379)
    assert split_address("[::1]:6379") == ("::1", 6379)


def test_workers_load_no_pickles_and_leave_gpus_alone_unless_given_one() -> None:
    on_cpu, on_gpu = worker_environment(gpu=False), worker_environment(gpu=True)
    for variables in (on_cpu, on_gpu):
        assert variables["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        assert variables["TOKENIZERS_PARALLELISM"] == "false"
    assert on_cpu["DS_ACCELERATOR"] == "cpu"
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"} & set(on_gpu)


def test_only_workers_with_a_gpu_need_processes_of_their_own() -> None:
    assert worker_runtime_env(gpu=False) == {}
    assert worker_runtime_env(gpu=True) == {"env_vars": worker_environment(gpu=True)}


def test_extensions_are_kept_apart_by_torch_and_deepspeed_version() -> None:
    from importlib.metadata import version

    assert version("torch") in extensions_folder().name
    assert version("deepspeed") in extensions_folder().name
