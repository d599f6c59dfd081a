"""The tracker: the same tracked run when a run goes on, and no harm when the tracker is away."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from heliostat.runs.mlflow_session import TrackedRun
from heliostat.runs.tracker import Tracker, TrackerTiming
from heliostat.storage import Location
from tests.support.small_bundles import small_bundle

FAST = TrackerTiming(retry_s=0.02, longest_retry_s=0.1, request_s=1)


def target(folder: Path, uri: str) -> TrackedRun:
    return TrackedRun(
        run_id="one",
        folder=Location.of(folder / "one"),
        experiment="demo",
        uri=uri,
        artefacts=str(folder / "artefacts"),
        parameters={"fit.lr": "0.001"},
    )


@pytest.fixture
def database(out: Location) -> Location:
    """Where the runs of `out` are tracked by default."""
    return out / "mlflow.db"


def client_of(database: Location) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{database}")


def test_a_run_that_goes_on_is_the_same_tracked_run(start: Any, database: Location) -> None:
    with start("one", tracker=True) as run:
        for step in range(3):
            run.log({"loss": 1.0 - step / 10, "p@1": 0.5}, step=step, stage="dft")
        run.finish({"top1": 0.5}, "interrupted")
    with start("one", again=True, tracker=True) as run:
        run.log({"loss": 0.6}, step=3, stage="dft")
        version = small_bundle(run.folder / "bundle")
        run.register(run.folder / "bundle", version)
        run.finish({"top1": 0.75})

    client = client_of(database)
    experiment = client.get_experiment_by_name("demo")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_name == "one"
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["fit.lr"] == "0.001"
    assert tracked.data.metrics["top1"] == 0.75
    assert tracked.data.metrics["dft/p_1"] == 0.5
    assert tracked.data.tags["heliostat.attempts"] == "2"
    history = client.get_metric_history(tracked.info.run_id, "dft/loss")
    assert [(point.step, point.value) for point in history] == [
        (0, 1.0),
        (1, 0.9),
        (2, 0.8),
        (3, 0.6),
    ]
    (model,) = client.search_model_versions("name = 'demo'")
    assert model.source == (run.folder / "bundle").uri
    assert model.tags["version"] == version
    assert model.tags["heliostat.run"] == "one"
    attached = {item.path for item in client.list_artifacts(tracked.info.run_id)}
    assert attached == {"config.yaml", "result.json"}


def test_the_tracked_run_is_found_again_when_its_note_was_lost(
    start: Any, out: Location, database: Location
) -> None:
    start("one", tracker=True).finish({})
    (out / "one" / "tracker.json").delete()
    start("one", again=True, tracker=True).finish({})
    client = client_of(database)
    experiment = client.get_experiment_by_name("demo")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_runs_of_two_folders_with_one_name_are_two_tracked_runs(
    out: Location, database: Location
) -> None:
    for place in ("a", "b"):
        folder = (out / place).local_path
        Tracker(target(folder, f"sqlite:///{database}"), FAST).finish("finished")
    client = client_of(database)
    experiment = client.get_experiment_by_name("demo")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_an_unreachable_server_costs_training_no_time_and_is_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as listener:
        # It accepts connections and never answers: worse than a refusal.
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        port = listener.getsockname()[1]
        tracker = Tracker(target(tmp_path, f"http://user:secret@127.0.0.1:{port}"), FAST)
        slowest = 0.0
        for step in range(2000):
            began = time.perf_counter()
            tracker.log({"loss": 1.0}, step=step)
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 0.5
        began = time.monotonic()
        tracker.finish("finished", limit_s=6)
        assert time.monotonic() - began < 8
    assert caplog.text.count("is away") <= 1
    assert "did not get 2001 entries of run one" in caplog.text
    assert "secret" not in caplog.text


def test_a_run_finishes_when_nothing_listens_at_the_tracker(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with start("one", tracker=True) as run:
        run.log({"loss": 1.0}, step=1, stage="s")
        record = run.finish({"top1": 0.5})
    assert record.status == "finished"
    assert run.series()["s"]["loss"].values == [1.0]
    assert caplog.text.count("is away") == 1


def test_what_was_logged_while_the_tracker_was_away_is_delivered_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    blocker = tmp_path / "db"
    blocker.write_text("a file where the database's folder should be")
    tracker = Tracker(target(tmp_path, f"sqlite:///{blocker}/mlflow.db"), FAST)
    tracker.log({"loss": 1.0}, step=1)
    deadline = time.monotonic() + 60
    while "is away" not in caplog.text:
        assert time.monotonic() < deadline
        tracker.log({"waited": 1.0}, step=1)
        time.sleep(0.01)
    blocker.unlink()
    blocker.mkdir()
    tracker.log({"loss": 0.5}, step=2)
    while "is back" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tracker.finish("finished")
    assert caplog.text.count("is away") == 1

    client = client_of(Location.of(blocker / "mlflow.db"))
    (tracked,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    history = client.get_metric_history(tracked.info.run_id, "loss")
    assert [point.value for point in history] == [1.0, 0.5]


def test_the_queue_is_bounded_and_keeps_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timing = TrackerTiming(retry_s=0.01, queue=100)
    tracker = Tracker(target(tmp_path, "http://127.0.0.1:9"), timing)
    for step in range(1000):
        tracker.log({"loss": 1.0}, step=step)
    assert len(tracker._queue) <= 100
    tracker.finish("finished", limit_s=20)
    assert "did not get 1001 entries" in caplog.text


def test_what_the_tracker_refuses_does_not_hold_up_the_rest(
    tmp_path: Path, database: Location, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(target(tmp_path, f"sqlite:///{database}"), FAST)
    tracker.log({"loss": 1.0, "x" * 400: 2.0, "p@k 50 %": 3.0}, step=1)
    tracker.tag({"": "an empty name is refused"})
    tracker.log({"loss": 0.5}, step=2)
    tracker.finish("finished")
    assert caplog.text.count("refused an entry") == 1
    client = client_of(database)
    (tracked,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics == {"loss": 0.5, "x" * 250: 2.0, "p_k 50 _": 3.0}


def test_runs_that_start_together_share_a_new_database(out: Location) -> None:
    """MLflow itself leaves a half-made database behind when two processes make one at once."""
    code = (
        "import os, sys; os.environ['HELIOSTAT_HOME'] = sys.argv[1] + '/home'\n"
        "from heliostat.runs.mlflow_session import *\n"
        "folder = Location.of(sys.argv[1])\n"
        "run = TrackedRun(sys.argv[2], folder / sys.argv[2], 'demo', sys.argv[3], None, {})\n"
        "open_session(run, 5).end('FINISHED')"
    )
    uri = f"sqlite:///{out}/mlflow.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, out.uri, name, uri], env=environment)
        for name in ("a", "b")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    client = client_of(out / "mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    names = {run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    assert names == {"a", "b"}
    assert {item.name for item in out.list()} == {"a", "b", "home", "mlflow.db"}


def test_mlflow_stays_quiet(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    start("one", tracker=True).finish({})
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "alembic" not in printed.err.lower()
    assert "mlflow" not in printed.err.lower()
