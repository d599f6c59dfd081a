"""The size of a working directory, as Ray would pack it."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.cluster.package_size import check_package_size
from heliostat.errors import UserError


def fill(folder: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def test_the_size_is_that_of_the_archive_ray_makes(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _zip_files

    folder = tmp_path / "work"
    fill(folder, {"a.py": 1000, "deep/er/b.bin": 5000, "skip/c": 10**6, "d.log": 10**6})
    (folder / ".gitignore").write_text("skip/\n")
    (folder / ".rayignore").write_text("*.log\n")
    archive = tmp_path / "package.zip"
    _zip_files(str(folder), [], str(archive), include_gitignore=True)
    # The end record of the archive is the only part not counted by file.
    assert abs(check_package_size(folder) - archive.stat().st_size) <= 22


def test_too_large_a_folder_is_refused_with_its_ten_largest_files(tmp_path: Path) -> None:
    fill(tmp_path, {f"file{index:02}": 1000 * (index + 1) for index in range(15)})
    with pytest.raises(UserError) as refusal:
        check_package_size(tmp_path, limit_bytes=50_000)
    listed = [line.split()[-1] for line in str(refusal.value).splitlines()[1:]]
    assert listed == [f"file{index:02}" for index in range(14, 4, -1)]
    assert ".rayignore" in str(refusal.value)


def test_git_and_virtual_environments_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, {".git/objects/x": 10**6, ".venv/lib/y": 10**6, "a.py": 10})
    assert check_package_size(tmp_path, limit_bytes=1000) < 1000


def test_the_limit_is_rays_own() -> None:
    from heliostat.cluster.ray_internals import upload_limit_bytes

    assert upload_limit_bytes() == 100 * 2**20


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        check_package_size(tmp_path / "none")
