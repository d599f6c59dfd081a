"""The command line as a user meets it: what it prints, and how it ends."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.example_job import command_environment, heliostat_command, write_job

# What is promised; it takes about 0.4 s.
STARTUP_S = 2.0
HEAVY = ("torch", "ray", "deepspeed", "transformers", "mlflow", "pandas", "sklearn", "pyarrow")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_job(folder)
    return folder


def shortest_of_three(folder: Path, *words: str) -> float:
    """The least processor time a command takes in three attempts; the first also compiles.

    Processor time, since the wall clock also measures what else the machine does.
    """
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        heliostat_command(folder, *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "example", "fit.bacth=3"],
        ["train", "exmaple"],
        ["config", "show"],
        ["models", "--help"],
        ["models", "show", "example:x"],
        ["models", "show", "example"],
    ],
)
def test_help_and_mistakes_come_within_two_seconds(project: Path, words: list[str]) -> None:
    assert shortest_of_three(project, *words) < STARTUP_S


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["jobs"],
        ["config", "show", "example"],
        ["train", "example", "fit.bacth=3"],
        ["train", "exmaple"],
        ["models", "--help"],
        ["models", "list"],
        ["models", "show", "example:x"],
        ["models", "promote", "example"],
    ],
)
def test_nothing_heavy_is_imported_to_say_so(project: Path, words: list[str]) -> None:
    code = (
        "import sys; from heliostat.cli.main import main; "
        f"main({words!r}); print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=command_environment(project),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_tells_the_commands_and_the_exit_codes(project: Path) -> None:
    text = " ".join(heliostat_command(project, "--help").stdout.split())
    for command in (
        "train",
        "claim",
        "jobs",
        "config",
        "runs",
        "models",
        "export",
        "verify",
        "estimate",
        "doctor",
    ):
        assert f" {command} " in text
    assert "0 done" in text
    assert "130 interrupted" in text
    assert "--install-completion" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Missing argument 'JOB'."),
        (["train", "example", "--rn"], "No such option: --rn"),
        (["train", "exampel"], "There is no job 'exampel'; did you mean example?"),
        (
            ["train", "example", "fit.bacth=3"],
            "command line: there is no key 'fit.bacth' (given the number 3); "
            "the nearest is fit.batch",
        ),
        (["claim", "example", "size=bgi"], "only laptop, big; the nearest is big"),
        (["estimate", "example", "fit.batch=3"], "command line: fit: batch 3 is no multiple"),
        (["config", "show", "example", "--config", "no.yaml"], "no.yaml: there is no such file"),
        (["verify", "nowhere"], "there is nothing at"),
        (["verify", "jobs"], "is neither a checkpoint nor a bundle: it has no manifest.json"),
        (["runs", "show", "nothing"], "nothing"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    project: Path, words: list[str], message: str
) -> None:
    result = heliostat_command(project, *words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("heliostat: ")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_more_workers_than_the_machine_has_are_refused_without_starting_ray(project: Path) -> None:
    result = heliostat_command(project, "train", "example", "resources.workers=100000")
    assert result.returncode == 2
    assert "can never be placed" in result.stderr
    assert "this machine" in result.stderr
    assert not (project / "runs").exists()


def test_no_command_shows_the_help(project: Path) -> None:
    result = heliostat_command(project)
    assert "Usage: heliostat" in result.stdout
    assert result.stderr == ""


def test_the_resolved_config_can_be_given_back(project: Path) -> None:
    shown = heliostat_command(project, "config", "show", "example", "size=big", "--resolved")
    assert yaml.safe_load(shown.stdout)["fit"]["batch"] == 64
    (project / "saved.yaml").write_text(shown.stdout)
    again = heliostat_command(
        project, "config", "show", "example", "--config", "saved.yaml", "--resolved"
    )
    assert again.stdout == shown.stdout


def test_the_shown_config_is_yaml_with_origins(project: Path) -> None:
    shown = heliostat_command(project, "config", "show", "example", "fit.micro_batch=2").stdout
    assert yaml.safe_load(shown)["fit"] == {"batch": 16, "micro_batch": 2, "precision": "fp32"}
    assert "[jobs/example/config.yaml:3] Samples of a step." in shown
    assert "[command line] Samples of a pass." in shown
    assert "[default] Number format." in shown


def test_jobs_lists_names_sizes_and_summaries(project: Path) -> None:
    text = heliostat_command(project, "jobs").stdout
    assert "example" in text
    assert "laptop, big" in text
    assert "An example that trains nothing." in text


@pytest.mark.parametrize(
    ("typed", "offers"),
    [
        ("heliostat train exa", {"example"}),
        ("heliostat train example size=b", {"size=big"}),
        ("heliostat train example fit.b", {"fit.batch="}),
        ("heliostat train example fit.precision=", {"fit.precision=fp32", "fit.precision=bf16"}),
        ("heliostat train example tracker.enabled=t", {"tracker.enabled=true"}),
        ("heliostat config show exa", {"example"}),
        ("heliostat train nosuch fit.", set()),
    ],
)
def test_the_shell_completes_jobs_sizes_keys_and_choices(
    project: Path, typed: str, offers: set[str]
) -> None:
    environment = {
        **command_environment(project),
        "_HELIOSTAT_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": typed,
    }
    result = subprocess.run(
        [sys.executable, "-m", "heliostat.cli.main"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {line.split('"')[1] for line in result.stdout.splitlines() if line.count('"') >= 2}
    assert found == offers, result.stdout + result.stderr


def test_the_doctor_looks_at_the_installation(project: Path) -> None:
    result = heliostat_command(project, "doctor")
    assert result.returncode in (0, 1)
    assert "python: " in result.stdout


def test_a_job_without_trainings_has_an_empty_estimate(project: Path) -> None:
    result = heliostat_command(
        project, "estimate", "example", "--cluster", "nodes=2,cpus=8,gpus=0,memory=16GB"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("job example, size laptop, config ")


def test_an_unreadable_cluster_is_a_users_mistake(project: Path) -> None:
    result = heliostat_command(project, "estimate", "example", "--cluster", "nodez=2")
    assert result.returncode == 2
    assert "nodez" in result.stderr
