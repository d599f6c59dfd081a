"""The driver's process: killed, stopped by Ctrl-C as a terminal sends it, stopped by SIGTERM.

One training is taken through all of it, by drivers that find no compiler on their path and a stale
build lock in every folder where DeepSpeed would look for a compiled extension.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from driver import ZERO_1, task_of
from trainings import EVAL_ROWS, STEPS, TRAIN_ROWS, Trainings, losses, saved_steps, steps_of, until

from heliostat.cluster.ray_cluster import extensions_folder
from heliostat.errors import EXIT_INTERRUPTED
from heliostat.runs.series import read_series
from heliostat.storage import Location
from heliostat.train.history import read_history
from tiny_task import write_rows

DRIVER = Path(__file__).parents[2] / "support" / "driver.py"
WAIT_S = 0.3
COMPILED = ("deepspeed_shm_comm", "fused_adam", "cpu_adam")


@dataclass(frozen=True)
class Ended:
    """A driver that is gone."""

    code: int
    output: str
    saved: int
    """Step of the newest checkpoint that it left."""
    history: list[int]
    """The newest steps that its log saw."""


@dataclass(frozen=True)
class Story:
    """Everything that happened, in order."""

    killed: Ended
    interrupted: Ended
    terminated: Ended
    finished: Ended
    folder: Location
    rows: Location


def path_without_compilers(folder: Path) -> str:
    """A folder with the few commands that Ray itself calls."""
    folder.mkdir()
    for name in ("sh", "bash", "env", "ps", "cat", "uname", "hostname", "ldconfig", "lscpu", "id"):
        for place in ("/bin", "/usr/bin", "/sbin", "/usr/sbin"):
            if (Path(place) / name).exists() and not (folder / name).exists():
                (folder / name).symlink_to(Path(place) / name)
    return str(folder)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    base = tmp_path_factory.mktemp("driver")
    rows, out = Location.of(base / "rows"), Location.of(base / "runs")
    write_rows(rows / "train", TRAIN_ROWS, seed=1)
    write_rows(rows / "evaluation", EVAL_ROWS, seed=2)
    for name in COMPILED:
        (extensions_folder() / name).mkdir(parents=True)
        (extensions_folder() / name / "lock").touch()
    path = path_without_compilers(base / "bin")
    folder = Trainings(out).folder("r", task_of(rows, WAIT_S))

    def drive(disturb: Callable[[subprocess.Popen[str], int], None], wait_s: float) -> Ended:
        before = max(saved_steps(folder), default=0)
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), out.uri, rows.uri, str(wait_s)],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        disturb(process, before)
        output, _ = process.communicate(timeout=400)
        steps = Trainings(out).folder("r", task_of(rows, 0)).parent.parent
        saved = max(saved_steps(folder), default=0)
        return Ended(process.returncode, output, saved, newest_logged(steps))

    def when_saved(number: int) -> Callable[[subprocess.Popen[str], int], None]:
        def disturb(process: subprocess.Popen[str], before: int) -> None:
            until(
                lambda: process.poll() is not None or max(saved_steps(folder), default=0) > before,
                "a checkpoint",
            )
            assert process.poll() is None, process.communicate()[0]
            # A terminal sends Ctrl-C to every process of the foreground group.
            send = os.killpg if number == signal.SIGINT else os.kill
            send(process.pid, number)

        return disturb

    def just_watch(process: subprocess.Popen[str], before: int) -> None:
        return

    return Story(
        killed=drive(when_saved(signal.SIGKILL), WAIT_S),
        interrupted=drive(when_saved(signal.SIGINT), WAIT_S),
        terminated=drive(when_saved(signal.SIGTERM), WAIT_S),
        finished=drive(just_watch, WAIT_S),
        folder=folder,
        rows=rows,
    )


def newest_logged(run: Location) -> list[int]:
    """The steps in the run's metric log."""
    lines = [
        json.loads(line)
        for file in (run / "metrics").list()
        for line in file.read_text().splitlines()
    ]
    return [line["step"] for line in lines if "loss" in line["metrics"]]


def test_a_run_whose_driver_was_killed_goes_on_by_name(story: Story) -> None:
    assert story.killed.code == -signal.SIGKILL
    assert 4 <= story.killed.saved < STEPS
    assert f"goes on from step-{story.killed.saved:08d}" in story.interrupted.output


@pytest.mark.parametrize("how", ["interrupted", "terminated"])
def test_a_signal_ends_the_driver_with_a_checkpoint_of_the_step_it_was_at(
    story: Story, how: str
) -> None:
    ended: Ended = getattr(story, how)
    assert ended.code == EXIT_INTERRUPTED
    assert f"was stopped at step {ended.saved} of {STEPS}, and saved" in ended.output
    assert max(ended.history) <= ended.saved, "no step was lost"


@pytest.mark.parametrize("how", ["interrupted", "terminated", "finished"])
def test_nothing_ugly_and_nothing_of_ray_reaches_the_screen(story: Story, how: str) -> None:
    output = getattr(story, how).output
    for noise in ("Traceback", "RayTrainWorker", "TrainController", "pid=", "Exception", "[rank"):
        assert noise not in output, output
    assert len(output.splitlines()) < 15, output


def test_without_a_compiler_and_with_stale_build_locks_training_does_not_hang(story: Story) -> None:
    assert story.finished.code == 0, story.finished.output
    for name in COMPILED:
        files = [path.name for path in (extensions_folder() / name).iterdir()]
        assert files == ["lock"], "nothing was built"


def test_after_all_this_losses_and_history_are_those_of_one_undisturbed_training(
    story: Story, trained
) -> None:
    reference = trained(ZERO_1, workers=2)
    rows = read_history(story.folder / "metrics")
    assert [row["loss"] for row in rows if "loss" in row] == losses(reference)
    assert steps_of(reference) == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "eval/loss" in row] == [10, 20]


def test_the_metric_log_of_the_run_misses_no_step_either(story: Story) -> None:
    [logged] = read_series(story.folder.parent.parent).values()
    assert logged["loss"].steps == list(range(1, STEPS + 1))
    rows = read_history(story.folder / "metrics")
    assert logged["loss"].values == [row["loss"] for row in rows if "loss" in row]
