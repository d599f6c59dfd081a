"""Where jobs are found by name, and which copy of the code a submitted folder would run with.

A job is a folder `jobs/NAME/` with a `config.py`. The current folder's jobs come first, then those
of the installed `jobs` package, then the entry points of the group `heliostat.jobs` (name = the
job's name, value = its package), so that a team can keep its jobs in a repository of its own.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import cast

import heliostat
from heliostat.config.contract import COMMON_KEYS, JobConfig
from heliostat.config.layers import shown_path
from heliostat.config.nearest import nearest_names, one_of
from heliostat.config.settings import put_on_path
from heliostat.errors import ConfigError, UserError

ENTRY_POINTS = "heliostat.jobs"


@dataclass(frozen=True)
class JobEntry:
    """A job that can be named on the command line."""

    name: str
    package: str
    """The import name: `jobs.support_templates`."""
    folder: Path
    """Where its `config.yaml` and `sizes/` are."""
    summary: str
    """The first line of its docstring."""

    def sizes(self) -> tuple[str, ...]:
        """The names of the overlays in `sizes/`, sorted."""
        return tuple(sorted(path.stem for path in (self.folder / "sizes").glob("*.yaml")))

    def config_class(self) -> type[JobConfig]:
        """The dataclass `Config` of the job's `config.py`; imports nothing heavy."""
        kind = getattr(self._module("config"), "Config", None)
        place = shown_path(self.folder / "config.py")
        if not isinstance(kind, type) or not is_dataclass(kind):
            raise ConfigError(f"{place}: it must define a dataclass named Config")
        names = [field.name for field in fields(kind)]
        if absent := [name for name in COMMON_KEYS if name not in names]:
            raise ConfigError(f"{place}: Config must also have the field {one_of(absent)}")
        return cast(type[JobConfig], kind)

    def code(self) -> ModuleType:
        """The module `job.py` with `run`, `claim` and `plan`; imports torch and Ray."""
        return self._module("job")

    def has_endpoint(self) -> bool:
        """Whether the job can be served."""
        return (self.folder / "endpoint.py").is_file()

    def endpoint_code(self) -> ModuleType:
        """The module `endpoint.py` with `endpoint`; imports torch."""
        return self._module("endpoint")

    def served_kinds(self) -> tuple[str, ...]:
        """The kinds of bundles that its endpoint opens: `SERVED_KINDS` of its `config.py`, by
        default its own."""
        kinds: tuple[str, ...] = getattr(self._module("config"), "SERVED_KINDS", (self.name,))
        return kinds

    def has_sweep(self) -> bool:
        """Whether the job can be swept."""
        return (self.folder / "sweep.py").is_file()

    def sweeps(self) -> tuple[str, ...]:
        """The names of the sweeps in `sweeps/`, sorted."""
        return tuple(sorted(path.stem for path in (self.folder / "sweeps").glob("*.yaml")))

    def sweep_code(self) -> ModuleType:
        """The module `sweep.py` with `TRIALS`; imports torch and Ray."""
        return self._module("sweep")

    def _module(self, name: str) -> ModuleType:
        path = self.folder / f"{name}.py"
        if not path.is_file():
            raise ConfigError(f"{shown_path(path)}: job {self.name} needs this file")
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except SyntaxError as error:
            place = f"{shown_path(Path(error.filename or path))}:{error.lineno}"
            raise ConfigError(f"{place}: this is not valid Python: {error.msg}") from error


def find_jobs(here: Path | None = None) -> dict[str, JobEntry]:
    """All jobs by name; puts the folder `here` (the current one) first on the import path.

    Raises `UserError` when the folder's jobs are hidden by an installed package.
    """
    here = (here or Path.cwd()).resolve()
    put_on_path(here)
    found: dict[str, JobEntry] = {}
    for parent in _job_folders(here):
        for folder in sorted(parent.iterdir()):
            if (folder / "config.py").is_file() and folder.name not in found:
                entry = JobEntry(folder.name, f"jobs.{folder.name}", folder, _summary(folder))
                found[folder.name] = entry
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name not in found:
            found[point.name] = _from_package(point.name, point.value)
    return found


def find_job(name: str, here: Path | None = None) -> JobEntry:
    """The job called `name`; raises `UserError` that names the nearest one."""
    found = find_jobs(here)
    if name in found:
        return found[name]
    if not found:
        raise UserError(
            f"There is no job {name!r}: neither {shown_path(Path('jobs'))}/ nor an installed "
            "package has one; go to a folder that has jobs/"
        )
    near = nearest_names(name, found)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(found))}"
    raise UserError(f"There is no job {name!r}; {hint}")


def check_submitted_version(here: Path | None = None) -> str | None:
    """Compare the platform in the folder with the one that runs.

    `jobs/` and `models/` of a submitted folder travel with it, `platform/` does not: Ray runs the
    installed distribution.

    Returns: A sentence to show when the versions agree but files differ; else None.

    Raises:
        UserError: The folder holds another version of heliostat than the one installed.
    """
    here = (here or Path.cwd()).resolve()
    source = here / "platform" / "heliostat"
    running = Path(heliostat.__file__).resolve().parent
    if running == source or not (source / "__init__.py").is_file():
        return None
    with (here / "pyproject.toml").open("rb") as file:
        wanted = str(tomllib.load(file)["project"]["version"])
    remedy = (
        "use an image built from this folder, or submit with "
        """--runtime-env-json '{"env_vars": {"PYTHONPATH": "platform"}}'"""
    )
    if wanted != heliostat.__version__:
        raise UserError(
            f"{here} holds heliostat {wanted}, but {heliostat.__version__} is installed at "
            f"{running}, and platform/ does not travel with a job: {remedy}"
        )
    if _digest(source) != _digest(running):
        return (
            f"platform/ in {here} differs from the installed heliostat {wanted}, which is what "
            f"runs; to run the folder's, {remedy}"
        )
    return None


def _job_folders(here: Path) -> list[Path]:
    """The folders that make up the package `jobs`, in import order.

    A folder's own package hides the installed one, unless its `__init__.py` joins the two with
    `__path__ = pkgutil.extend_path(__path__, __name__)`.
    """
    try:
        package = importlib.import_module("jobs")
    except ModuleNotFoundError:
        return []
    parents = [Path(place).resolve() for place in package.__path__]
    local = here / "jobs"
    if local.is_dir() and local not in parents:
        raise UserError(
            f"{shown_path(local)}/ has no __init__.py, so Python takes the package jobs in "
            f"{parents[0]} instead; create an empty {shown_path(local)}/__init__.py"
        )
    return [parent for parent in parents if parent.is_dir()]


def _from_package(name: str, package: str) -> JobEntry:
    """A job from an entry point, located without running it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The entry point {name} of {ENTRY_POINTS} names no package: {package}")
    folder = Path(spec.submodule_search_locations[0])
    return JobEntry(name, package, folder, _summary(folder))


def _summary(folder: Path) -> str:
    """The first line of the package's docstring, read without importing it."""
    for path in (folder / "__init__.py", folder / "job.py", folder / "config.py"):
        if path.is_file():
            try:
                text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            except SyntaxError:
                text = None
            if text:
                return text.splitlines()[0]
    return ""


def _digest(folder: Path) -> str:
    """A digest over the Python files of a folder."""
    total = hashlib.sha256()
    for path in _python_files(folder):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def _python_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("*.py"))
