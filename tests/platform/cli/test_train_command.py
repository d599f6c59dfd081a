"""`heliostat train` from the config to the last line, on a local Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from heliostat.cli.main import main
from tests.support.example_job import write_job


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> Iterator[Path]:
    import importlib
    import sys

    write_job(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = [name for name in sys.modules if name == "jobs" or name.startswith("jobs.")]
    kept = {name: sys.modules.pop(name) for name in names}
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name == "jobs" or name.startswith("jobs.")]:
        del sys.modules[name]
    sys.modules.update(kept)


def test_a_run_prints_its_table_and_last_where_the_bundle_is(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "example", "--run", "first"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run first (size laptop, config ")
    assert lines[1] == f"folder {project}/runs/first"
    assert lines[-2:] == [
        f"bundle: {project}/runs/first/bundle",
        f"next: heliostat verify {project}/runs/first/bundle",
    ]
    text = "\n".join(lines)
    assert "Example on [bold]nothing[/bold]" in text
    assert "0.25" in text
    assert "A note." in text
    assert len(lines) < 40


def test_without_a_name_every_run_is_a_new_one(project: Path) -> None:
    assert main(["train", "example"]) == main(["train", "example"]) == 0
    names = sorted(path.name for path in (project / "runs").iterdir())
    assert len(names) == 2
    assert all(name.startswith("example-") for name in names)


def test_a_named_run_goes_on_with_what_is_done(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "example", "--run", "again"])
    assert main(["train", "example", "resources.cpus_per_worker=2", "--run", "again"]) == 0
    text = capsys.readouterr().out
    assert "attempt 2" in text
    assert "prepared in attempt" in text


def test_a_named_run_refuses_another_config_by_its_keys(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "example", "--run", "fixed"])
    assert main(["train", "example", "seed=7", "out=runs", "--run", "fixed"]) == 2
    message = capsys.readouterr().err
    assert "seed was 0 and is 7" in message
    assert "resources" not in message


@pytest.mark.parametrize(
    ("fail", "code", "message"),
    [
        ("user", 2, "row 3 has no label"),
        ("fault", 1, "worker 1 died"),
        ("bug", 1, "unexpected KeyError: 'oops'"),
        ("stop", 130, "stopped at step 7"),
        ("key", 130, "interrupted"),
        ("term", 130, "interrupted"),
    ],
)
def test_every_end_has_its_exit_code_and_a_way_on(
    project: Path, capsys: pytest.CaptureFixture[str], fail: str, code: int, message: str
) -> None:
    assert main(["train", "example", f"fail={fail}", "--run", "ends"]) == code
    shown = capsys.readouterr().err
    assert f"heliostat: {message}" in shown
    assert "Traceback" not in shown
    if code == 1:
        log = Path(shown.split("The traceback is in ")[1].split(".log")[0] + ".log")
        assert "Traceback" in log.read_text()
    if fail != "user":
        assert f"heliostat train example fail={fail} --run ends" in shown


def test_debug_shows_the_traceback(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "example", "fail=bug", "--debug"]) == 1
    assert "KeyError: 'oops'" in capsys.readouterr().err


def test_runs_can_be_listed_shown_and_compared(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "example", "--run", "one"])
    main(["train", "example", "seed=3", "--run", "two"])
    capsys.readouterr()
    assert main(["runs", "list"]) == 0
    text = capsys.readouterr().out
    assert "one" in text
    assert "finished" in text
    assert main(["runs", "show", "one"]) == 0
    assert "0.25" in capsys.readouterr().out
    assert main(["runs", "compare", "one", "two"]) == 0
    compared = capsys.readouterr().out
    assert "seed" in compared
    assert "metrics: no difference" in compared


def test_a_claim_is_a_run_of_its_own(project: Path) -> None:
    assert main(["claim", "example"]) == 0
    (run,) = (project / "runs").iterdir()
    assert run.name.startswith("example-claim-")


def test_a_job_without_a_claim_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "jobs" / "example" / "job.py"
    path.write_text(path.read_text().replace("def claim", "def other"))
    assert main(["claim", "example"]) == 2
    assert "job example has no claim() in its job.py" in capsys.readouterr().err
