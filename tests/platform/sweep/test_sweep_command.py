"""Whole sweeps by the command line, each on a Ray of its own with two CPUs or fewer.

The stories are slow: a driver that is killed, a worker that is killed, Ctrl-C, a population, and
halving against a full grid.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from sweep_job import start_command, traces, write_sweep_job
from trainings import until

from heliostat.errors import EXIT_INTERRUPTED
from heliostat.storage import Location
from heliostat.train.history import read_history

LR = "fit.optimizer.lr"
LIMIT_S = 900
ONE_CPU = "resources.cpus_per_worker=1"
"""Two trials at a time on two cores, whose drivers must not take the workers' places."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def heliostat(folder: Path, *words: str, code: int = 0) -> str:
    """Run a command to its end; returns what it printed."""
    process = start_command(folder, *words)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, output
    return output


def disturbed(
    folder: Path, words: list[str], when: Callable[[], object], disturb: Callable[[int], None]
) -> tuple[int, str]:
    """Run a command and disturb its process at a state of the world; its code and output."""
    process = start_command(folder, *words)
    until(lambda: process.poll() is not None or when(), "the state to disturb it in")
    assert process.poll() is None, process.communicate()[0]
    disturb(process.pid)
    output, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, output


def table_of(folder: Path, sweep: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / "runs" / sweep / "sweep.parquet").to_pylist()


def records(folder: Path, sweep: str) -> dict[str, Any]:
    files = (folder / "runs" / sweep / "ledger").glob("*.json")
    return {file.stem: json.loads(file.read_text()) for file in files}


def finished(folder: Path, sweep: str) -> list[str]:
    return [name for name, one in records(folder, sweep).items() if one["status"] == "finished"]


def history(folder: Path, sweep: str, trial: str) -> list[dict[str, Any]]:
    place = folder / "runs" / sweep / "trials" / trial / "stages" / "tiny" / "metrics"
    return read_history(Location.of(place))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_sweep_job(tmp_path)


def test_more_trials_than_places_end_and_the_best_config_is_one_that_train_accepts(
    place: Path,
) -> None:
    output = heliostat(place, "sweep", "tiny", ONE_CPU, "--run", "grid")
    assert "4 trials, 2 at a time (as many as fit)" in output
    assert len(output.splitlines()) < 40, output
    for noise in ("Traceback", "Tune", "pid=", "WARNING", "RayTrainWorker", "actor"):
        assert noise not in output, output
    rows = table_of(place, "grid")
    assert sorted(row[f"values.{LR}"] for row in rows) == [1e-4, 1e-3, 1e-2, 5e-2]
    assert {row["status"] for row in rows} == {"finished"}
    assert [row["metrics.loss"] for row in rows] == sorted(row["metrics.loss"] for row in rows)
    assert len(traces(place, "shared")) == 1, "what trials share is made once"
    for number in range(4):
        assert len(traces(place, f"train-t00{number}")) == 1
    assert not (place / "runs" / "grid" / "tune").exists()

    command = re.search(r"next: heliostat (train tiny --config \S+)", output)
    assert command is not None
    trained = heliostat(place, *command[1].split(), "--run", "best")
    (best,) = [row for row in rows if row["is_best"]]
    assert f"{best['metrics.loss']:.4g}" in trained, "the same config gives the same loss"
    digests = [
        json.loads((place / "runs" / run / "run.json").read_text())["digest"]
        for run in ("best", f"grid/trials/{best['trial']}")
    ]
    assert digests[0] == digests[1]

    listed = heliostat(place, "runs", "list")
    assert re.search(r"grid\s+│ tiny │ finished", listed)
    again = heliostat(place, "sweep", "tiny", ONE_CPU, "--run", "grid")
    assert "at a time" not in again, "there was nothing left to do"
    assert len(traces(place, "train-")) == 4


def test_a_sweep_whose_driver_was_killed_repeats_no_finished_trial(place: Path) -> None:
    words = ["sweep", "tiny", ONE_CPU, "wait_s=0.05", "--run", "r"]

    def some_done_and_some_begun() -> bool:
        later = [*traces(place, "train-t002"), *traces(place, "train-t003")]
        return bool(finished(place, "r") and later)

    code, _ = disturbed(
        place, words, some_done_and_some_begun, lambda pid: os.kill(pid, signal.SIGKILL)
    )
    assert code == -signal.SIGKILL
    done = finished(place, "r")
    cut = [name for name in records(place, "r") if name not in done]
    assert cut
    heliostat(place, *words)
    rows = table_of(place, "r")
    assert sorted(row[f"values.{LR}"] for row in rows) == [1e-4, 1e-3, 1e-2, 5e-2]
    assert {row["status"] for row in rows} == {"finished"}
    for name in done:
        assert len(traces(place, f"train-{name}")) == 1, "a finished trial is not begun again"
    for row in rows:
        steps = [seen["step"] for seen in history(place, "r", row["trial"]) if "loss" in seen]
        assert steps == list(range(1, 41)), "every step once"
    assert len(traces(place, "shared")) == 1


def test_ctrl_c_saves_the_trials_at_work_and_the_sweep_goes_on(place: Path) -> None:
    words = ["sweep", "tiny", ONE_CPU, "wait_s=0.1", "--run", "r"]

    def evaluated() -> bool:
        return any(one["points"] for one in records(place, "r").values())

    code, output = disturbed(place, words, evaluated, lambda pid: os.kill(pid, signal.SIGINT))
    assert code == EXIT_INTERRUPTED, output
    assert "stopping: trials at work save a checkpoint first" in output
    assert "Go on where it stopped: heliostat sweep tiny" in output
    at_work = [name for name, one in records(place, "r").items() if one["status"] == "waiting"]
    assert at_work
    for name in at_work:
        training = place / "runs" / "r" / "trials" / name / "stages" / "tiny"
        assert list((training / "checkpoints").glob("*/manifest.json"))
    heliostat(place, *words)
    assert {row["status"] for row in table_of(place, "r")} == {"finished"}
    for name in records(place, "r"):
        steps = [seen["step"] for seen in history(place, "r", name) if "loss" in seen]
        assert steps == list(range(1, 41))


def test_a_killed_worker_and_a_killed_trial_go_on_from_their_checkpoints(place: Path) -> None:
    words = ["sweep", "tiny", "wait_s=0.1", ONE_CPU, "--run", "r"]
    process = start_command(place, *words)

    def newest(number: int) -> int:
        points = records(place, "r").get(f"t00{number}", {"points": []})["points"]
        return points[-1]["step"] if points else 0

    def children(beginning: str) -> list[psutil.Process]:
        below = psutil.Process(process.pid).children(recursive=True)
        return [one for one in below if " ".join(one.cmdline()).startswith(beginning)]

    until(lambda: process.poll() is not None or newest(0) >= 12, "some evaluations")
    children("ray::RayTrainWorker")[0].kill()
    until(lambda: process.poll() is not None or newest(2) >= 8, "evaluations of a later trial")
    drivers = [one for one in children("ray::") if "Trainable" in " ".join(one.cmdline())]
    assert drivers
    drivers[0].kill()
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    rows = table_of(place, "r")
    assert {row["status"] for row in rows} == {"finished"}, output
    assert sorted(row[f"values.{LR}"] for row in rows) == [1e-4, 1e-3, 1e-2, 5e-2]
    for row in rows:
        steps = [seen["step"] for seen in history(place, "r", row["trial"]) if "loss" in seen]
        assert steps == list(range(1, 41))


def test_a_population_exploits(place: Path) -> None:
    """Three members on two places: pauses, copies, and a lineage in the table."""
    words = ["sweep", "tiny", ONE_CPU, "sweep.scheduler=pbt", "sweep.searcher=random",
             "sweep.budget.trials=3", "sweep.pbt.every=4", "sweep.seed=3",
             f"sweep.space.{LR}.log_uniform=[1e-4,5e-2]", "--run", "pbt"]  # fmt: skip
    output = heliostat(place, *words)
    rows = {row["trial"]: row for row in table_of(place, "pbt")}
    copies = [row for row in rows.values() if row["parent"] is not None]
    assert copies, output
    for row in copies:
        donor = rows[row["parent"]]
        replaced = next(
            one
            for one in rows.values()
            if (one["member"], one["generation"]) == (row["member"], row["generation"] - 1)
        )
        assert replaced["status"] == "replaced"
        assert row[f"values.{LR}"] != donor[f"values.{LR}"]
        mine = [seen for seen in history(place, "pbt", row["trial"]) if "loss" in seen]
        theirs = {s["step"]: s for s in history(place, "pbt", donor["trial"]) if "loss" in s}
        first = mine[0]
        assert first["step"] == row["parent_step"] + 1
        if first["step"] in theirs:
            # The loss of the weights before the step: the donor's own, to the last bit.
            assert first["loss"] == theirs[first["step"]]["loss"]
            ratio = row[f"values.{LR}"] / donor[f"values.{LR}"]
            assert first["lr"] == pytest.approx(theirs[first["step"]]["lr"] * ratio)
        shown = f"{row['parent']} at step {row['parent_step']}"
        assert shown in output
    newest = {row["member"]: row for row in sorted(rows.values(), key=lambda r: r["generation"])}
    assert len(newest) == 3
    assert {row["status"] for row in newest.values()} == {"finished"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halving_reaches_the_best_of_the_grid_with_half_of_its_steps(
    place: Path, seed: int
) -> None:
    lrs = "[1e-4,3e-4,6e-4,1e-3,2e-3,4e-3,8e-3,1.5e-2,2.5e-2,4e-2,6e-2,1e-1]"
    words = ["sweep", "tiny", ONE_CPU, f"seed={seed}", f"sweep.seed={seed}",
             f"sweep.space.{LR}.grid={lrs}"]  # fmt: skip
    heliostat(place, *words, "--run", "grid")
    heliostat(place, *words, "sweep.scheduler=asha", "sweep.asha={grace: 2, reduction: 2}",
              "--run", "asha")  # fmt: skip
    grid, asha = table_of(place, "grid"), table_of(place, "asha")
    assert len(asha) == len(grid) == 12
    steps = [sum(row["steps"] for row in rows) for rows in (grid, asha)]
    best = [next(row["metrics.loss"] for row in rows if row["is_best"]) for rows in (grid, asha)]
    print(f"seed {seed}: grid {best[0]:.4f} in {steps[0]} steps, asha {best[1]:.4f} in {steps[1]}")
    assert steps[0] == 12 * 40
    assert steps[1] <= steps[0] / 2
    assert best[1] <= best[0] * 1.02


def test_a_sweep_over_knobs_trains_nothing_and_finds_the_front(place: Path) -> None:
    output = heliostat(place, "sweep", "tiny", "sweep=knobs", "--run", "k")
    rows = {row["values.window"]: row for row in table_of(place, "k")}
    assert sorted(rows) == [1, 2, 4, 8, 16]
    assert next(w for w, row in rows.items() if row["is_best"]) == 4
    # |log2(window) - 2| against the window itself.
    assert {w for w, row in rows.items() if row["is_unbeaten"]} == {1, 2, 4}
    assert all(math.isclose(row["metrics.error"], abs(math.log2(w) - 2)) for w, row in rows.items())
    assert len(traces(place, "read-")) == 5
    assert "unbeaten" in output


def test_a_trial_that_fails_is_named_and_the_others_count(place: Path) -> None:
    output = heliostat(place, "sweep", "tiny", "sweep=knobs", "fail_at=4", "--run", "k")
    assert "t002 (3 of 5)" in output or "failed: a window of 4 is cursed" in output
    assert "Without a result: t002" in output
    rows = {row["trial"]: row for row in table_of(place, "k")}
    assert rows["t002"]["error"] == "a window of 4 is cursed"
    assert sum(row["status"] == "finished" for row in rows.values()) == 4


def test_mistakes_are_told_in_a_second_without_ray(place: Path) -> None:
    done = start_command(place, "sweep", "tiny", "sweep.space.fit.optimzer.lr.grid=[1]")
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 2
    assert "the nearest is fit.optimizer.lr" in output
    assert not (place / "runs").exists()


def test_the_command_names_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "heliostat.cli.main", "sweep", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "sweep=NAME" in done.stdout
