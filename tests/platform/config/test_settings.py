"""What the environment says, and where outputs go because of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from heliostat.config.output import resolve_output
from heliostat.config.settings import put_on_path, settings

VARIABLES = (
    "HELIOSTAT_HOME",
    "HELIOSTAT_RUNS",
    "HELIOSTAT_SHARED_STORAGE",
    "XDG_CACHE_HOME",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "CI",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable is set, the home is empty, and the caller stands in a folder of its own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def test_without_variables_everything_has_a_default(tmp_path: Path) -> None:
    found = settings()
    assert found.home == tmp_path / "home" / ".cache" / "heliostat"
    assert found.runs is found.tracking_uri is found.ray_address is found.shared_storage is None
    assert not any((found.is_submitted, found.is_in_package, found.is_ci))


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert settings().ray_address is None


def test_the_home_follows_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert settings().home == Path("/cache/heliostat")
    monkeypatch.setenv("HELIOSTAT_HOME", "/own")
    assert settings().home == settings().submitted_home == Path("/own")


@pytest.mark.parametrize(("value", "is_ci"), [("true", True), ("1", True), ("false", False)])
def test_a_ci_system_is_recognised(
    value: str, is_ci: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", value)
    assert settings().is_ci is is_ci


def test_a_submitted_driver_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert settings().is_submitted


def test_the_names_are_those_that_ray_uses() -> None:
    """Fails when an upgrade of Ray changes them."""
    from ray._private.runtime_env import constants, working_dir

    from heliostat.config.settings import JOB_DRIVER_VARIABLE, WORKING_DIR_PARENT

    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == JOB_DRIVER_VARIABLE
    assert f'"{WORKING_DIR_PARENT}"' in Path(working_dir.__file__).read_text()


def test_a_relative_out_is_below_the_callers_folder(bare: Path) -> None:
    output = resolve_output("runs")
    assert output.place.local_path == bare / "runs"
    assert output.note is None


def test_absolute_paths_and_uris_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOSTAT_RUNS", "/elsewhere")
    assert resolve_output("/data/runs").place.local_path == Path("/data/runs")
    assert resolve_output("s3://bucket/runs").place.uri == "s3://bucket/runs"


def test_a_relative_out_goes_below_the_runs_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOSTAT_RUNS", "/elsewhere")
    assert resolve_output("runs").place.local_path == Path("/elsewhere/runs")
    monkeypatch.setenv("HELIOSTAT_RUNS", "s3://bucket/team?scheme=http")
    assert resolve_output("runs").place.uri == "s3://bucket/team/runs?scheme=http"


def test_a_submitted_job_keeps_its_runs_out_of_the_vanishing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    output = resolve_output("runs")
    assert output.place.local_path == tmp_path / "home" / "heliostat" / "runs"
    assert output.note is not None
    assert str(output.place.local_path) in output.note


def test_a_folder_is_put_first_on_the_path_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", ["/other", str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", "/given")
    put_on_path(tmp_path)
    put_on_path(tmp_path)
    assert sys.path == [str(tmp_path), "/other"]
    assert os.environ["PYTHONPATH"] == f"{tmp_path}:/given"
