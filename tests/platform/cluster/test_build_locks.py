"""Locks of torch extensions: the stale are found and removed, the living are not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from heliostat.cluster import doctor_software
from heliostat.cluster.build_locks import clear_stale_build_locks, find_build_locks


def make_lock(folder: Path, age_s: float) -> Path:
    lock = folder / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    then = time.time() - age_s
    os.utime(lock, (then, then))
    return lock


def test_an_old_lock_that_nobody_holds_is_stale_and_removed(tmp_path: Path) -> None:
    lock = make_lock(tmp_path, age_s=3600)
    (found,) = find_build_locks([tmp_path])
    assert found.is_stale(600)
    assert found.age_s == pytest.approx(3600, abs=5)
    assert clear_stale_build_locks(600, [tmp_path]) == [lock.resolve()]
    assert not lock.exists()


def test_a_young_lock_is_left_alone(tmp_path: Path) -> None:
    lock = make_lock(tmp_path, age_s=10)
    assert clear_stale_build_locks(600, [tmp_path]) == []
    assert lock.exists()


def test_a_lock_held_by_a_living_builder_is_left_alone(tmp_path: Path) -> None:
    lock = make_lock(tmp_path, age_s=3600)
    with lock.open():
        assert clear_stale_build_locks(600, [tmp_path]) == []
    assert lock.exists()
    assert clear_stale_build_locks(600, [tmp_path]) == [lock.resolve()]


def test_the_lock_is_the_one_torch_waits_for(tmp_path: Path) -> None:
    from torch.utils.file_baton import FileBaton

    folder = tmp_path / "extension"
    folder.mkdir()
    baton = FileBaton(str(folder / "lock"))
    assert baton.try_acquire()
    (found,) = find_build_locks([tmp_path])
    assert found.is_held
    baton.release()
    assert find_build_locks([tmp_path]) == []


def test_folders_that_do_not_exist_have_no_locks(tmp_path: Path) -> None:
    assert clear_stale_build_locks(600, [tmp_path / "none"]) == []


def test_doctor_names_the_stale_lock_and_how_to_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = make_lock(tmp_path, age_s=7200)
    monkeypatch.setattr(doctor_software, "extension_folders", lambda: (tmp_path,))
    finding = doctor_software.check_build_locks()
    assert finding.status == "fail"
    assert "120 min old" in finding.detail
    assert finding.remedy == f"rm {lock.resolve()}"
