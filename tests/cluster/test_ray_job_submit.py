"""`ray job submit --working-dir . -- heliostat train ...` as in the README, and its accidents."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from heliostat.cluster.ray_internals import packed_files
from tests.support.ray_head import (
    RayHead,
    Submission,
    node_id_of,
    raylets,
    started_head,
    started_worker,
    wait_for,
)

ROOT = Path(__file__).resolve().parents[2]
PRESTOP = ROOT / "cluster" / "prestop.py"
TITLE = "As edited in the copy"
TINY = (
    "data.simulator.unlabelled_cases=300",
    "data.simulator.labelled_cases=120",
    "data.simulator.validation_cases=20",
    "data.simulator.test_cases=40",
    "general.max_characters=500000",
    "general.training.fit.steps=6",
    "model.vocab_size=1024",
    "dapt.fit.steps=12",
    "dapt.fit.checkpoint.every=2",
    "dft.label_budget=300",
    "dft.fit.epochs=4",
    "compare=false",
    "tracker.enabled=false",
)
ROTARY = (
    "length=64",
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "model.key_value_heads=1",
    "model.feed_forward_width=24",
    "fit.steps=12",
    "fit.batch=8",
    "fit.micro_batch=8",
    "fit.schedule.warmup_steps=2",
    "evaluation.windows=8",
    "evaluation.position_windows=4",
    "tracker.enabled=false",
)
HOLD = """
import signal, sys, ray

def stop(number, frame):
    print("saved", flush=True)
    sys.exit(130)

ray.init(log_to_driver=False)
signal.signal(signal.SIGTERM, stop)
print("holding", flush=True)
signal.pause()
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to."""

    submission: Submission
    folder: Path

    @property
    def metrics(self) -> dict[str, float]:
        return result(self.folder)["metrics"]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # Short: the paths of Ray's sockets are below it and limited to about 100 characters.
    with tempfile.TemporaryDirectory(prefix="hs-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def head(home: Path) -> Iterator[RayHead]:
    with started_head(home, home / "ray") as running:
        yield running


@pytest.fixture(scope="module")
def checkout(home: Path) -> Path:
    """A copy of the repository with an edit in jobs/."""
    copy = home / "checkout"
    for path in packed_files(ROOT):
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    job = copy / "jobs" / "support_templates" / "job.py"
    edited = job.read_text().replace('title=f"Accuracy on', f'title=f"{TITLE}: accuracy on')
    assert TITLE in edited
    job.write_text(edited)
    return copy


@pytest.fixture(scope="module")
def undisturbed(head: RayHead, checkout: Path, home: Path) -> Undisturbed:
    """Submitted without `out`: the folder of the job is a copy that Ray deletes."""
    submission = head.submit(checkout, train("undisturbed"))
    return Undisturbed(submission, home / "heliostat" / "runs" / "undisturbed")


def train(run: str, *more: str) -> list[str]:
    return ["heliostat", "train", "support_templates", "size=quick", "--run", run, *TINY, *more]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def statuses(folder: Path) -> list[str]:
    """How each attempt at a run ended."""
    return [attempt["status"] for attempt in result(folder)["attempts"]]


def has_checkpoint(folder: Path, stage: str) -> bool:
    return any((folder / "stages" / stage / "checkpoints").glob("*/manifest.json"))


def test_a_submitted_job_succeeds(undisturbed: Undisturbed) -> None:
    assert undisturbed.submission.process.returncode == 0, undisturbed.submission.text
    assert statuses(undisturbed.folder) == ["finished"]


def test_edits_in_jobs_travel_with_the_job(undisturbed: Undisturbed) -> None:
    assert f"{TITLE}: accuracy on" in undisturbed.submission.text


def test_a_relative_out_does_not_vanish_with_the_jobs_folder(undisturbed: Undisturbed) -> None:
    text = undisturbed.submission.text
    assert f"bundle: {undisturbed.folder}/bundle" in text
    assert "runs go to" in text
    assert (undisturbed.folder / "bundle").is_dir()


def test_the_token_is_printed_nowhere(undisturbed: Undisturbed, home: Path) -> None:
    assert (home / "token").read_text() not in undisturbed.submission.text


def test_submitted_again_a_finished_run_is_only_read(
    head: RayHead, checkout: Path, undisturbed: Undisturbed
) -> None:
    before = undisturbed.metrics
    stages = result(undisturbed.folder)["stages"]
    again = head.submit(checkout, train("undisturbed"))
    assert again.process.returncode == 0, again.text
    assert undisturbed.metrics == before
    assert {name: stage["attempts"] for name, stage in stages.items()} == {
        name: stage["attempts"] for name, stage in result(undisturbed.folder)["stages"].items()
    }


def test_a_run_that_lost_a_worker_and_two_drivers_ends_as_if_nothing_had_happened(
    head: RayHead, checkout: Path, home: Path, undisturbed: Undisturbed
) -> None:
    """What a RayJob with `backoffLimit` goes through: the same line, submitted again each time."""
    folder = home / "runs" / "disturbed"
    entrypoint = train("disturbed", f"out={home / 'runs'}")

    first = head.start_submission(checkout, entrypoint)
    wait_for(lambda: running(first) and has_checkpoint(folder, "dapt"), 900, "a first checkpoint")
    killed = kill_a_worker(head)
    wait_for(lambda: running(first) and replaced(head, killed), 300, "a new worker")
    driver_of(folder).send_signal(signal.SIGKILL)
    assert first.process.wait(300) == 1
    assert "failed" in first.text

    second = head.start_submission(checkout, entrypoint)
    wait_for(lambda: running(second) and has_checkpoint(folder, "dft"), 900, "a checkpoint of dft")
    driver_of(folder).send_signal(signal.SIGTERM)
    assert second.process.wait(300) == 1
    assert "exit code 130" in second.text
    assert re.search(r"stopped at step \d+ of \d+.* saved", second.text)

    third = head.submit(checkout, entrypoint)
    assert third.process.returncode == 0, third.text
    assert statuses(folder)[-1] == "finished"
    assert len(statuses(folder)) == 3
    assert result(folder)["metrics"] == undisturbed.metrics


def test_a_submitted_sweep_over_the_bundle_ends_in_a_table(
    head: RayHead, checkout: Path, home: Path, undisturbed: Undisturbed
) -> None:
    words = ["size=quick", "sweep=knobs", *TINY, f"out={home / 'sweeps'}", "--run", "knobs"]
    bundle = f"sweep.bundle={undisturbed.folder / 'bundle'}"
    done = head.submit(checkout, ["heliostat", "sweep", "support_templates", *words, bundle])
    assert done.process.returncode == 0, done.text
    assert "at a time" in done.text
    assert "12 trials, the highest top5 first" in done.text
    assert (home / "sweeps" / "knobs" / "sweep.parquet").is_file()
    assert (home / "sweeps" / "knobs" / "best.yaml").is_file()


def test_a_submitted_search_for_the_window_survives_a_killed_trial(
    head: RayHead, checkout: Path, home: Path
) -> None:
    places = [f"out={home / 'rotary'}", "--run"]
    done = head.submit(checkout, ["heliostat", "train", "rerope", *ROTARY, *places, "tiny"])
    assert done.process.returncode == 0, done.text
    bundle = f"sweep.bundle={home / 'rotary' / 'tiny' / 'bundle'}"
    sweep = head.start_submission(
        checkout, ["heliostat", "sweep", "rerope", *ROTARY, bundle, *places, "windows"]
    )
    wait_for(lambda: running(sweep) and len(head.trials()) > 0, 300, "a trial at work")
    head.trials()[0].send_signal(signal.SIGKILL)
    assert sweep.process.wait(900) == 0, sweep.text
    assert "18 trials, the lowest nonrep_loss_8L first" in sweep.text
    rows = pq.read_table(home / "rotary" / "windows" / "sweep.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"finished"}
    cells = {(row["values.scheme.window"], row["values.scheme.log_n"]) for row in rows}
    assert len(cells) == len(rows) == 18


def running(submission: Submission) -> bool:
    assert submission.process.poll() is None, submission.text
    return True


def kill_a_worker(head: RayHead) -> set[int]:
    """Kill one rank without warning; returns the process ids of all ranks."""
    workers = head.training_workers()
    assert workers, "the training was over before a worker could be killed"
    workers[-1].send_signal(signal.SIGKILL)
    return {worker.pid for worker in workers}


def replaced(head: RayHead, killed: set[int]) -> bool:
    """Whether other processes train now: after a loss the whole group starts again."""
    return bool({worker.pid for worker in head.training_workers()} - killed)


def driver_of(folder: Path) -> psutil.Process:
    """The process that holds the lock of a run."""
    return psutil.Process(json.loads((folder / "lock.json").read_text())["pid"])


def test_the_head_asks_drivers_to_save_before_it_is_stopped(head: RayHead, home: Path) -> None:
    """The preStop hook of the head pod; the job counts as failed, so that a RayJob tries again."""
    folder = home / "holding" / "code"
    folder.mkdir(parents=True)
    (folder / "hold.py").write_text(HOLD)
    submission = head.start_submission(folder, ["python", "hold.py"])
    wait_for(lambda: running(submission) and "holding" in submission.text, 300, "the driver")
    subprocess.run(
        [sys.executable, str(PRESTOP), "head", "--dashboard", head.dashboard, "--seconds", "60"],
        env=dict(head.environment),
        check=True,
        timeout=180,
    )
    assert submission.process.wait(60) == 1
    assert "saved" in submission.text
    assert "exit code 130" in submission.text


def test_a_worker_node_empties_itself_before_it_is_stopped(home: Path) -> None:
    """The preStop hook of a worker pod: the node is drained, and ends when nothing runs on it."""
    folder = home / "leaving"
    folder.mkdir()
    with started_head(folder, folder / "ray", cpus=0) as head, started_worker(head) as worker:
        node_id = node_id_of(worker)
        command = [sys.executable, str(PRESTOP), "worker", "--address", head.address]
        subprocess.run(
            [*command, "--node-id", node_id, "--seconds", "60"],
            env=dict(head.environment),
            check=True,
            timeout=180,
        )
        assert raylets(worker) == []
