"""cluster/Dockerfile: what it copies exists, what it installs is locked, and the wheel is whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, lines joined and comments left out."""
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = text.replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def test_everything_copied_exists_and_is_in_the_context(
    instructions: list[tuple[str, str]],
) -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for name, arguments in instructions:
        if name == "COPY" and "--from=" not in arguments:
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists()
                assert source in allowed


def test_it_runs_as_a_user_without_rights(instructions: list[tuple[str, str]]) -> None:
    *_, user = [arguments for name, arguments in instructions if name == "USER"]
    assert user == "1000:1000"


def test_it_needs_no_compiler(instructions: list[tuple[str, str]]) -> None:
    text = " ".join(arguments for name, arguments in instructions if name == "RUN")
    assert not re.search(r"\b(gcc|g\+\+|build-essential|cmake|nvcc|clang)\b", text)
    assert any("DS_BUILD_OPS=0" in arguments for name, arguments in instructions if name == "ENV")


def test_versions_come_from_the_lock_alone(instructions: list[tuple[str, str]]) -> None:
    """Each pip install names the lock, a line of it, or this checkout."""
    runs = " && ".join(arguments for name, arguments in instructions if name == "RUN")
    installs = [part for part in runs.split("&&") if "pip install" in part]
    assert len(installs) == 4
    for part in installs:
        assert "requirements.lock" in part or "others.lock" in part or part.strip().endswith(" .")
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert len([line for line in lock if line.startswith("torch==")]) == 1


def test_python_is_the_one_that_the_project_asks_for(instructions: list[tuple[str, str]]) -> None:
    (version,) = [arguments for name, arguments in instructions if "PYTHON=" in arguments][:1]
    assert version.startswith("PYTHON=3.11-")


def test_the_wheel_holds_every_file_that_the_packages_read(tmp_path: Path) -> None:
    """The image has no checkout: what is not in the wheel is not there."""
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("platform", "models", "jobs"):
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wanted = {
        str(path.relative_to(source / root))
        for root, folder in (("platform", "platform"), (".", "models"), (".", "jobs"))
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - packed == set()
