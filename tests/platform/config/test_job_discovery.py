"""Jobs are found by name: in the current folder, in the installed package, by entry point."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliostat.config import jobs
from heliostat.config.explain import annotated_yaml, field_table
from heliostat.config.jobs import check_submitted_version, find_job, find_jobs
from heliostat.config.load import load_config
from heliostat.errors import ConfigError, UserError
from tests.support.example_job import PLATFORM, write_job


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No package of jobs is imported before or left behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    kept = _forget_jobs()
    importlib.invalidate_caches()
    yield
    _forget_jobs()
    sys.modules.update(kept)


def _forget_jobs() -> dict[str, object]:
    names = [name for name in sys.modules if name == "jobs" or name.startswith("jobs.")]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_job(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_with_a_config_is_a_job(here: Path) -> None:
    (here / "jobs" / "not_a_job").mkdir()
    found = find_jobs()
    assert list(found) == ["example"]
    job = found["example"]
    assert (job.package, job.folder) == ("jobs.example", here / "jobs" / "example")
    assert job.summary == "An example that trains nothing."
    assert job.sizes() == ("big",)


def test_looking_for_jobs_does_not_import_them(here: Path) -> None:
    (here / "jobs" / "example" / "__init__.py").write_text('"""Summary."""\nraise SystemError\n')
    assert find_jobs()["example"].summary == "Summary."


@pytest.mark.usefixtures("here")
def test_a_typo_is_told_the_nearest_job() -> None:
    with pytest.raises(UserError, match=r"^There is no job 'exmaple'; did you mean example\?$"):
        find_job("exmaple")


@pytest.mark.usefixtures("here")
def test_a_strange_name_is_told_all_jobs() -> None:
    with pytest.raises(UserError, match=r"^There is no job 'zzz'; there are example$"):
        find_job("zzz")


def test_an_entry_point_is_a_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = here / "acme" / "ranker"
    write_job(here / "other")
    package.parent.mkdir()
    (here / "other" / "jobs" / "example").rename(package)
    (package.parent / "__init__.py").write_text("")
    point = jobs.metadata.EntryPoint("ranker", "acme.ranker", jobs.ENTRY_POINTS)
    monkeypatch.setattr(jobs.metadata, "entry_points", lambda group: [point])
    job = find_job("ranker")
    assert (job.package, job.folder) == ("acme.ranker", package)
    assert load_config(job, None, []).config.out == "runs"


def test_a_folder_hidden_by_an_installed_package_is_explained(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = tmp_path_factory.mktemp("installed")
    write_job(installed, "theirs")
    sys.path.append(str(installed))
    (here / "jobs" / "__init__.py").unlink()
    with pytest.raises(UserError, match=r"^jobs/ has no __init__\.py, so Python takes the package"):
        find_jobs()


def test_an_init_that_extends_the_path_joins_folder_and_installed_jobs(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = tmp_path_factory.mktemp("installed")
    write_job(installed, "theirs")
    sys.path.append(str(installed))
    (here / "jobs" / "__init__.py").write_text(
        "import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n"
    )
    assert {"example", "theirs"} <= set(find_jobs())


@pytest.mark.usefixtures("here")
class TestLoadConfig:
    def test_sources_win_in_their_order(self, tmp_path: Path) -> None:
        own = tmp_path / "own.yaml"
        own.write_text("fit: {batch: 32}\nseed: 5\n")
        job = find_job("example")
        assert load_config(job, None, []).config.fit.batch == 16
        assert load_config(job, "big", []).config.fit.batch == 64
        assert load_config(job, None, ["size=big"]).size == "big"
        assert load_config(job, "big", [], [own]).config.fit.batch == 32
        loaded = load_config(job, "big", ["fit.batch=8"], [own])
        assert loaded.config.fit.batch == 8
        assert loaded.config.seed == 5
        assert loaded.sources == (
            "jobs/example/config.yaml",
            "jobs/example/sizes/big.yaml",
            "own.yaml",
            "command line",
        )
        assert loaded.origins["fit.batch"] == "command line"
        assert loaded.origins["seed"] == "own.yaml:2"
        assert loaded.origins["data"] == "jobs/example/config.yaml:1"
        assert loaded.origins["fit.micro_batch"] == "default"

    def test_a_wrong_size_is_told_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(find_job("example"), "bgi", [])
        assert str(caught.value) == (
            "command line: job example has no size 'bgi', only laptop, big; the nearest is big"
        )

    def test_two_sizes_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="size is given twice, as big and as laptop"):
            load_config(find_job("example"), None, ["size=big", "size=laptop"])

    def test_the_digest_leaves_out_what_decides_nothing(self) -> None:
        job = find_job("example")
        digest = load_config(job, None, []).digest
        same = ["resources.workers=[1,4]", "tracker.enabled=false", "out=/elsewhere"]
        assert load_config(job, None, same).digest == digest
        assert load_config(job, None, ["seed=1"]).digest != digest
        assert load_config(job, None, ["fit.batch=16"]).digest == digest

    def test_an_elastic_range_comes_back_from_the_resolved_yaml(self, tmp_path: Path) -> None:
        job = find_job("example")
        loaded = load_config(job, None, ["resources.workers=[1,4]"])
        saved = tmp_path / "saved.yaml"
        saved.write_text(loaded.resolved_yaml)
        again = load_config(job, None, [], [saved])
        assert again.config == loaded.config
        assert again.resolved_yaml == loaded.resolved_yaml

    def test_impossible_resources_are_refused(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(find_job("example"), None, ["resources.accelerator_type=H100"])
        assert str(caught.value).startswith(
            "command line: resources: accelerator_type is H100 while gpus_per_worker is 0: "
            "set gpus_per_worker to 1, or accelerator_type to null"
        )

    def test_a_broken_config_module_names_file_and_line(self) -> None:
        Path("jobs/example/config.py").write_text("x = (\n")
        with pytest.raises(ConfigError, match=r"^jobs/example/config\.py:1: this is not valid Py"):
            load_config(find_job("example"), None, [])

    def test_a_config_without_the_common_keys_is_refused(self) -> None:
        Path("jobs/example/config.py").write_text(
            "from dataclasses import dataclass\n@dataclass\nclass Config:\n    seed: int = 0\n"
        )
        with pytest.raises(ConfigError, match="must also have the field out, resources or tracker"):
            load_config(find_job("example"), None, [])

    def test_every_key_is_explained(self) -> None:
        job = find_job("example")
        loaded = load_config(job, None, ["fit.batch=8"])
        rows = {row.key: row for row in field_table(job.config_class(), loaded)}
        batch = rows["fit.batch"]
        assert (batch.type, batch.default, batch.value) == ("int", "8", "8")
        assert (batch.origin, batch.doc) == ("command line", "Samples of a step.")
        assert rows["data"].default is None
        assert rows["fit.precision"].type == "fp32|bf16"
        assert all(row.doc for row in rows.values())
        shown = annotated_yaml(loaded)
        assert "  batch: 8" in shown
        assert "# [command line] Samples of a step." in shown


def checkout(folder: Path, version: str) -> Path:
    """A folder that holds a copy of the platform, as a submitted working directory does."""
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "heliostat"\nversion = "{version}"\n'
    )
    source = folder / "platform" / "heliostat"
    for path in (PLATFORM / "heliostat").rglob("*.py"):
        target = source / path.relative_to(PLATFORM / "heliostat")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return source


def test_a_folder_without_the_platform_needs_no_version(tmp_path: Path) -> None:
    assert check_submitted_version(tmp_path) is None


def test_the_same_platform_passes_silently(tmp_path: Path) -> None:
    checkout(tmp_path, jobs.heliostat.__version__)
    assert check_submitted_version(tmp_path) is None


def test_another_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    checkout(tmp_path, "99.0")
    with pytest.raises(UserError, match=r"holds heliostat 99\.0, but .* is installed") as caught:
        check_submitted_version(tmp_path)
    assert "PYTHONPATH" in str(caught.value)


def test_edits_that_would_not_run_are_told(tmp_path: Path) -> None:
    source = checkout(tmp_path, jobs.heliostat.__version__)
    (source / "errors.py").write_text("")
    assert "which is what runs" in str(check_submitted_version(tmp_path))
