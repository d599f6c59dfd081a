"""Runs: unique names, stages done once, going on after a crash, and what result.json says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heliostat.errors import Interrupted, UserError
from heliostat.runs.lock import RunBusyError, is_held
from heliostat.runs.record import read_record
from heliostat.storage import Location

WORKER = """
import sys
from heliostat.config.resources import TrackerConfig
from heliostat.runs.run import Run
from heliostat.storage import Location

run = Run.open_or_create(
    Location.of(sys.argv[1]), "demo", name="killed", resolved_yaml=sys.argv[2], digest=sys.argv[3],
    seed=3, tracker=TrackerConfig(enabled=False),
)
run.stage("first", None, lambda folder: {"pid": 1})
run.log({"loss": 4.0}, step=1, stage="second")
run.log({"loss": 3.0}, step=2, stage="second")

def work(folder):
    (folder / "half.txt").write_text("half")
    print("in the middle", flush=True)
    sys.stdin.read()

run.stage("second", None, work)
"""


def result_of(folder: Location) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_run_without_a_name_gets_a_unique_one(start: Any) -> None:
    runs = [start() for _ in range(5)]
    assert len({run.id for run in runs}) == 5
    assert all(re.match(r"demo-abcdef-\d{8}-\d{6}", run.id) for run in runs)


def test_a_taken_name_is_refused_and_the_way_to_go_on_is_named(start: Any) -> None:
    start("one").finish({})
    with pytest.raises(UserError, match=r"a run named one exists .*heliostat train demo --run one"):
        start("one")


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "x" * 200])
def test_a_name_that_cannot_be_a_folder_is_refused(start: Any, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a run"):
        start(name)


def test_a_finished_stage_is_not_done_again_when_the_run_goes_on(start: Any) -> None:
    calls: list[str] = []

    def work(folder: Location) -> dict[str, object]:
        calls.append(folder.name)
        (folder / "data.txt").write_text("data")
        return {"rows": 7, "parts": [1, 2], "loss": 0.5}

    with start("one") as run:
        first = run.stage("prepare", {"version": 1}, work)
        assert run.stage("prepare", {"version": 1}, work) == first
    with start("one", again=True) as run:
        assert run.stage("prepare", {"version": 1}, work) == first
    assert calls == ["prepare"]


def test_a_stage_with_another_key_starts_over_in_an_empty_folder(start: Any) -> None:
    def work(folder: Location) -> list[str]:
        before = [item.name for item in folder.list()]
        (folder / "data.txt").write_text("data")
        return before

    run = start("one")
    assert run.stage("prepare", {"version": 1}, work) == []
    assert run.stage("prepare", {"version": 2}, work) == []
    assert run.stage("prepare", {"version": 1}, work) == []


def test_costly_work_is_not_thrown_away_when_what_it_depends_on_has_changed(start: Any) -> None:
    def work(folder: Location) -> str:
        (folder / "weights.txt").write_text("weights")
        return "done"

    run = start("one")
    assert run.stage("train", {"version": 1}, work, is_costly=True) == "done"
    with pytest.raises(UserError, match=r"stage train .* is not what it was"):
        run.stage("train", {"version": 2}, work, is_costly=True)
    assert (run.folder / "stages" / "train" / "weights.txt").exists()
    assert run.stage("train", {"version": 1}, work, is_costly=True) == "done"


def test_a_failed_stage_is_handed_its_half_done_folder(start: Any) -> None:
    def fail(folder: Location) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), start("one") as run:
        run.stage("train", None, fail)
    record = read_record(run.folder)
    assert record.status == "failed"
    assert "out of memory" in str(record.attempts[-1].error)
    with start("one", again=True) as run:
        found = run.stage("train", None, lambda folder: (folder / "half.txt").read_text())
    assert found == "half"
    assert read_record(run.folder).stages["train"].attempts == 2


def test_a_stage_that_returns_what_json_would_change_is_refused(start: Any) -> None:
    run = start("one")
    for value in ({1: "a"}, (1, 2), {"where": Path("/x")}):
        with pytest.raises(TypeError, match="stage odd"):
            run.stage("odd", None, lambda folder, value=value: value)


def test_kill_9_in_the_middle_of_a_stage_loses_nothing_that_was_done(
    start: Any, out: Location, resolved_yaml: str, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, out.uri, resolved_yaml, digest],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    with pytest.raises(RunBusyError, match=f"process {process.pid}"):
        start("killed", again=True)
    process.kill()
    process.wait()

    assert result_of(out / "killed")["status"] == "running"
    assert not is_held(out / "killed")
    with start("killed", again=True) as run:
        assert f"left behind by process {process.pid}" in caplog.text
        assert run.attempt == 2
        assert run.stage("first", None, lambda folder: {"pid": 2}) == {"pid": 1}
        assert run.stage("second", None, lambda folder: (folder / "half.txt").read_text()) == "half"
        run.log({"loss": 2.5}, step=2, stage="second")
        assert run.series()["second"]["loss"].values == [4.0, 2.5]
    attempts = read_record(run.folder).attempts
    assert [attempt.status for attempt in attempts] == ["interrupted", "finished"]
    assert attempts[0].pid == process.pid
    assert attempts[0].ended is not None


def test_another_config_is_refused_and_the_keys_are_named(start: Any, resolved_yaml: str) -> None:
    start("one").finish({})
    changed = resolved_yaml.replace("0.001", "0.01").replace("workers: 1", "workers: 2")
    with pytest.raises(UserError, match=r"fit\.lr was 0\.001 and is 0\.01") as caught:
        start("one", again=True, resolved_yaml=changed, digest="other")
    assert "workers" not in str(caught.value), "workers may differ when a run goes on"
    start("one", again=True).finish({})


def test_the_resources_may_differ_when_a_run_goes_on(start: Any, resolved_yaml: str) -> None:
    start("one").finish({})
    changed = resolved_yaml.replace("workers: 1", "workers: 2")
    run = start("one", again=True, resolved_yaml=changed)
    assert (run.folder / "config.yaml").read_text() == changed


def test_result_json_explains_the_run(start: Any) -> None:
    run = start("one")
    run.stage("prepare", None, lambda folder: 1)
    assert result_of(run.folder)["status"] == "running"
    run.finish({"top1": 0.5, "broken": float("nan")}, seeds=[3, 4, 5])
    result = result_of(run.folder)
    assert result["id"] == "one"
    assert result["job"] == "demo"
    assert result["status"] == "finished"
    assert result["metrics"] == {"top1": 0.5, "broken": None}
    assert result["seeds"] == [3, 4, 5]
    assert result["digest"] == "abcdef0123456789"
    assert result["stages"]["prepare"]["status"] == "finished"
    assert result["stages"]["prepare"]["seconds"] >= 0
    assert {"python", "torch", "ray", "deepspeed", "transformers"} <= result["versions"].keys()
    assert result["hardware"]["cpus"] >= 1
    assert result["hardware"]["memory_bytes"] > 0
    assert set(result["code"]) == {"commit", "dirty"}
    (attempt,) = result["attempts"]
    assert attempt["number"] == 1
    assert attempt["pid"] == os.getpid()
    assert attempt["ended"] >= attempt["started"]
    assert not (run.folder / "lock.json").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (Interrupted("stopped at step 5"), "interrupted"),
        (ValueError("no"), "failed"),
    ],
)
def test_how_a_run_ends_is_recorded(start: Any, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), start("one") as run:
        raise error
    assert read_record(run.folder).status == status
    assert not is_held(run.folder)


def test_the_cache_is_shared_by_runs(start: Any, private_home: Path) -> None:
    assert start("one").cache == start("two").cache == Location.of(private_home / "cache")


def test_importing_runs_is_light() -> None:
    heavy = "torch,ray,mlflow,pandas,matplotlib,pyarrow,deepspeed,transformers"
    code = (
        "import sys, heliostat.runs.run, heliostat.runs.listing, heliostat.runs.claim\n"
        f"print([name for name in '{heavy}'.split(',') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
