"""cluster/ray-up.yaml: what `ray up` would check and do, without a machine to do it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "ray-up.yaml").read_text())
    return found


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])


def test_no_training_worker_lands_on_the_head(config: dict[str, Any]) -> None:
    start = config["head_start_ray_commands"][-1]
    assert "--num-cpus=0" in start
    assert "--num-gpus=0" in start


def test_the_options_of_ray_start_exist(config: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    used = {word.partition("=")[0] for line in commands for word in line.split() if "--" in word}
    assert used <= known


def test_runs_and_caches_are_where_all_machines_see_them(config: dict[str, Any]) -> None:
    options = config["docker"]["run_options"]
    mounts = [option.split(":")[-1] for option in options if option.startswith("--volume=")]
    variables = dict(
        option.removeprefix("--env=").split("=", 1)
        for option in options
        if option.startswith("--env=")
    )
    assert mounts == ["/storage"]
    assert variables["HELIOSTAT_HOME"].startswith("/storage/")
    assert variables["HELIOSTAT_RUNS"].startswith("/storage/")


def test_stopping_a_job_leaves_time_for_a_checkpoint(config: dict[str, Any]) -> None:
    from ray.dashboard.modules.job.job_supervisor import JobSupervisor

    name = "RAY_JOB_STOP_WAIT_TIME_S"
    (given,) = [option for option in config["docker"]["run_options"] if name in option]
    assert int(given.rpartition("=")[2]) > JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S


def test_the_cluster_asks_for_a_token(config: dict[str, Any]) -> None:
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])
