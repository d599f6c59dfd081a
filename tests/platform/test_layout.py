"""The house rules that a reader relies on: who imports whom, what is heavy, what travels."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = ROOT / "platform" / "heliostat"
MOST_PACKAGE_BYTES = 5 * 2**20


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of all modules that a file imports, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found.add(node.module or "")
    return frozenset(found)


def python_files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def importers(files: list[Path], *roots: str) -> list[str]:
    """The files that import one of these top-level packages."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in sorted(imports(path))
        if name.split(".")[0] in roots
    ]


def test_the_platform_knows_neither_models_nor_jobs() -> None:
    assert importers(python_files(PLATFORM), "models", "jobs") == []


def test_models_know_neither_platform_nor_jobs() -> None:
    assert importers(python_files(ROOT / "models"), "heliostat", "jobs") == []


def test_models_are_plain_torch() -> None:
    roots = ("ray", "deepspeed", "mlflow", "omegaconf", "pyarrow", "yaml")
    assert importers(python_files(ROOT / "models"), *roots) == []


def test_only_training_and_checkpoints_know_deepspeed() -> None:
    rooms = (PLATFORM / "train", PLATFORM / "checkpoint")
    others = [path for path in python_files(PLATFORM, ROOT / "jobs") if not inside(path, rooms)]
    assert importers(others, "deepspeed") == []


def test_only_runs_know_mlflow() -> None:
    rooms = (PLATFORM / "runs",)
    others = [path for path in python_files(PLATFORM, ROOT / "jobs") if not inside(path, rooms)]
    assert importers(others, "mlflow") == []


def test_only_sweeps_know_tune_and_optuna() -> None:
    files = python_files(PLATFORM, ROOT / "jobs")
    others = [path for path in files if not inside(path, (PLATFORM / "sweep",))]
    known = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in others
        for name in imports(path)
        if name.split(".")[0] == "optuna" or f"{name}.".startswith("ray.tune.")
    ]
    assert known == []


def test_no_job_knows_another() -> None:
    """What several jobs share is a package that is no job, such as `jobs.corpora`."""
    folders = sorted(path for path in (ROOT / "jobs").iterdir() if path.is_dir())
    jobs = {path.name for path in folders if (path / "job.py").exists()}
    for folder in folders:
        names = {name for path in python_files(folder) for name in imports(path)}
        parts = [name.split(".") for name in names if name.startswith("jobs.")]
        others = [name for _, name, *_ in parts if name in jobs - {folder.name}]
        assert others == []


def test_the_environment_is_read_in_one_module() -> None:
    files = python_files(PLATFORM, ROOT / "models", ROOT / "jobs")
    readers = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if path != PLATFORM / "config" / "settings.py"
        for line in environment_reads(path)
    ]
    assert readers == []


def environment_reads(path: Path) -> Iterator[int]:
    """Lines that read `os.environ` or call `os.getenv`; setting a variable is allowed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    set_here = set()
    for node in ast.walk(tree):
        # `os.environ[name] = ...`, `os.environ.setdefault(...)`, `os.environ.pop(...)`
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            set_here.add(node.value)
        if isinstance(node, ast.Attribute) and node.attr in ("setdefault", "pop", "update"):
            set_here.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
            is_read = node not in set_here
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            is_read = bool({alias.name for alias in node.names} & {"environ", "getenv"})
        else:
            is_read = False
        if is_read:
            yield node.lineno


def inside(path: Path, rooms: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(room) for room in rooms)


def test_platform_is_only_a_source_root() -> None:
    """A package or module there would hide the standard library's `platform`."""
    assert [path.name for path in (ROOT / "platform").glob("*.py")] == []


def test_no_name_hides_the_standard_library() -> None:
    at_top = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert at_top & sys.stdlib_module_names <= {"platform"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "ray", "deepspeed", "transformers"])
def test_libraries_import_with_the_repository_first_on_the_path(name: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import platform, {name}; platform.system()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_a_submitted_working_directory_stays_small() -> None:
    from heliostat.cluster.ray_internals import packed_files

    files = list(packed_files(ROOT))
    biggest = sorted(files, key=lambda path: path.stat().st_size, reverse=True)[:5]
    assert sum(path.stat().st_size for path in files) < MOST_PACKAGE_BYTES, biggest


@pytest.mark.parametrize("name", ["heliostat", "heliostat.errors", "heliostat.config.load"])
def test_light_modules_import_nothing_heavy(name: str) -> None:
    assert_light(name)


@pytest.mark.parametrize(
    "name",
    [f"jobs.{path.parent.name}.config" for path in sorted((ROOT / "jobs").glob("*/config.py"))],
)
def test_configs_of_jobs_import_nothing_heavy(name: str) -> None:
    assert_light(name)


def assert_light(name: str) -> None:
    heavy = ("torch", "ray", "deepspeed", "transformers", "mlflow", "pandas", "sklearn", "pyarrow")
    code = f"import {name}, sys; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
