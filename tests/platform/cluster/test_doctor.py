"""The doctor's report: whole, quick, and with a remedy for whatever is wrong."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from heliostat.cluster import doctor, doctor_machine, doctor_ray, doctor_software
from heliostat.cluster.doctor import Finding, run_doctor
from heliostat.storage import Location


def test_the_report_is_whole_quick_and_has_a_remedy_for_everything_wrong(tmp_path: Path) -> None:
    import torch  # noqa: F401  # the tests measure the doctor, not the import

    start = time.monotonic()
    findings = run_doctor(Location.of(tmp_path))
    assert time.monotonic() - start < 15
    assert {finding.name for finding in findings} >= set(doctor.CHECKS) - {"names"}
    for finding in findings:
        assert finding.status in ("ok", "warn", "fail")
        assert finding.detail
        assert bool(finding.remedy) is (finding.status != "ok"), finding
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(doctor.CHECKS, "clock", broken)
    (clock,) = [finding for finding in run_doctor() if finding.name == "clock"]
    assert clock.status == "fail"
    assert "RuntimeError: no such thing" in clock.detail


def test_a_package_that_hides_the_standard_library_is_found(tmp_path: Path) -> None:
    (tmp_path / "platform").mkdir()
    assert doctor_software.check_shadowing([tmp_path]).status == "ok"
    (tmp_path / "platform" / "__init__.py").touch()
    finding = doctor_software.check_shadowing([tmp_path])
    assert finding.status == "fail"
    assert str(tmp_path / "platform" / "__init__.py") in finding.detail


def test_a_module_that_hides_the_standard_library_is_found(tmp_path: Path) -> None:
    (tmp_path / "queue.py").touch()
    assert "queue.py" in doctor_software.check_shadowing([tmp_path]).detail


def test_the_checkout_that_does_not_run_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "platform" / "heliostat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    finding = doctor_software.check_source()
    assert finding.status == "warn"
    assert str(tmp_path) in finding.detail


def test_another_version_than_asked_for_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ["torch==1.0", "not-a-distribution>=1", "numpy", "spacy; extra == 'presidio'"]
    monkeypatch.setattr(doctor_software.metadata, "requires", lambda name: wrong)
    first, second = doctor_software.check_versions()
    assert "tested with torch==1.0" in first.detail
    assert second.detail == "not-a-distribution>=1 is not installed"
    assert second.remedy == "pip install 'not-a-distribution>=1'"


def test_another_python_than_asked_for_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor_software.metadata, "metadata", lambda name: {"Requires-Python": ">=4"}
    )
    assert "needs >=4" in doctor_software.check_python().detail


def test_storage_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    finding = doctor_machine.check_storage(Location.of(blocked / "runs"))
    assert finding.status == "fail"
    assert str(blocked) in finding.detail


def test_a_taken_port_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(doctor_machine, "PORTS", {port: "a test"})
        (finding,) = doctor_machine.check_ports()
    assert finding.status == "warn"
    assert f"port {port} (a test) is taken" in finding.detail


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    full = usage._replace(free=usage.total // 100)
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda path: full)
    assert [finding.status for finding in doctor_machine.check_disks()] == ["fail", "fail"]
    assert "99% taken" in doctor_machine.check_disks()[0].detail


def test_a_wrong_clock_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine.time, "time", lambda: 0.0)
    finding = doctor_machine.check_clock()
    assert finding.status == "fail"
    assert "1970" in finding.detail


def test_a_cluster_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected to a cluster already")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused.getsockname()[1]}")
        (finding,) = doctor_ray.check_ray()
    assert finding.status == "fail"
    assert "RAY_ADDRESS" in finding.detail


def test_a_port_that_is_no_ray_is_told_from_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected to a cluster already")
    monkeypatch.setattr(doctor_ray, "_VERSIONS_TIMEOUT_S", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        (finding,) = doctor_ray.check_ray()
    assert finding.status == "fail"
    assert "not a Ray cluster" in finding.detail


def test_a_folder_for_sessions_that_is_too_long_for_sockets_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected to a cluster already")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("deep" * 20)))
    (finding,) = doctor_ray.check_ray()
    assert finding.status == "fail"
    assert "too long" in finding.detail
