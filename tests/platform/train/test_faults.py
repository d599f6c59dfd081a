"""What breaks while training, and what becomes of the training: each case is defined."""

from __future__ import annotations

import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from trainings import (
    CONFIG,
    STEPS,
    ZERO,
    Trainings,
    losses,
    meanwhile,
    resources,
    saved_steps,
    signal_when,
    steps_of,
    until,
)

from heliostat.checkpoint.manifest import committed
from heliostat.errors import Interrupted, TrainingFailed
from heliostat.storage import Location
from heliostat.train.config import CheckpointConfig, EvaluationConfig
from heliostat.train.fit import fit
from heliostat.train.interrupt import StopRequests
from heliostat.train.step import batch_hash
from heliostat.train.weights import read_weights
from tiny_task import TinyTask

OFTEN = replace(CONFIG, checkpoint=CheckpointConfig(every=2))


Outage = tuple[Location, Callable[[], None], Callable[[], None]]


@pytest.fixture
def s3_outage() -> Iterator[Outage]:
    """A bucket, and how to stop and start the server that holds it; it forgets nothing."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    servers = [server]
    name = f"heliostat-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=name)

    def begin() -> None:
        servers.append(ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False))
        servers[-1].start()

    bucket = Location.of(f"s3://{name}?endpoint_override={host}:{port}&scheme=http")
    yield bucket, lambda: servers[-1].stop(), begin
    servers[-1].stop()


def id_at(task: TinyTask, step: int, index: int) -> int:
    return int(task.train_data().samples([(step - 1) * CONFIG.batch + index])[0]["id"])


@pytest.mark.parametrize(
    "cluster",
    ["ray_cluster", pytest.param("somebody_elses_cluster", marks=pytest.mark.slow)],
)
def test_an_exception_on_worker_1_is_explained_on_one_screen_and_not_tried_a_third_time(
    train: Trainings, tiny_task: TinyTask, request: pytest.FixtureRequest, cluster: str
) -> None:
    request.getfixturevalue(cluster)
    task = replace(tiny_task, fail_at_id=id_at(tiny_task, 7, 1), wait_s=0.1)
    with pytest.raises(TrainingFailed) as caught:
        train(task, replace(CONFIG, zero=ZERO[1]), workers=2, run="r")
    text = str(caught.value)
    assert text.startswith("training tiny failed: worker 1 on node ")
    assert f"after step 6: ValueError: sample {task.fail_at_id} is cursed" in text
    assert "the second time in the same way, so it is not tried again" in text
    assert text.count("Traceback") == 1
    assert "tiny_task.py" in text
    good = train.folder("r", task) / "checkpoints" / "step-00000004"
    assert text.endswith(f"Last step: 6. Last good checkpoint: {good.uri}.")
    assert len(text.splitlines()) <= 24


def test_a_loss_that_is_not_a_number_stops_names_the_samples_and_keeps_the_last_good_checkpoint(
    train: Trainings, tiny_task: TinyTask, caplog
) -> None:
    caplog.set_level(logging.WARNING)
    # The last sample of the fourth micro batch of step 6: the very step that is saved at.
    poison = id_at(tiny_task, 6, 7)
    task = replace(tiny_task, poison_id=poison)
    with pytest.raises(TrainingFailed) as caught:
        train(task, OFTEN, run="r")
    text = str(caught.value)
    neighbour = id_at(tiny_task, 6, 6)
    assert "the loss of step 6 is not finite (lm=nan)" in text
    batch = task.collate(task.train_data().samples([5 * CONFIG.batch + 6, 5 * CONFIG.batch + 7]))
    hashed = batch_hash(batch)
    assert f"worker 0 had samples {neighbour}, {poison} (batch hash {hashed})" in text
    assert text.endswith("step-00000004.")
    assert saved_steps(train.folder("r", task)) == [2, 4]
    assert "Traceback" not in text
    assert "goes on from" not in caplog.text, "it was not tried again"


def test_early_stopping_ends_in_time_and_keeps_the_weights_of_every_evaluation(
    train: Trainings, tiny_task: TinyTask
) -> None:
    # Memorising random tokens makes the evaluation worse from early on.
    config = replace(
        CONFIG,
        steps=400,
        evaluation=EvaluationConfig(every=5, patience=2),
        checkpoint=CheckpointConfig(every=100, weights_at_evaluations=True),
    )
    result = train(tiny_task, config, run="r")
    evaluations = {row["step"]: row["eval/loss"] for row in result.history() if "eval/loss" in row}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert result.outcome.status == "early"
    assert result.outcome.best_step == best
    assert result.outcome.step == best + 10 < 400
    assert saved_steps(result.folder)[-1] == result.outcome.step
    for step in evaluations:
        assert (result.at_step(step) / "model.safetensors").exists()
    kept, of_best = read_weights(result.best), read_weights(result.at_step(best))
    assert all(bool((kept[name] == of_best[name]).all()) for name in kept)
    assert result.final == result.best


def test_a_full_disk_while_training_is_told_and_training_goes_on(
    trained, tiny_task: TinyTask, full_disk: Path, caplog
) -> None:
    caplog.set_level(logging.WARNING)
    train = Trainings(Location.of(full_disk / "runs"))
    task = replace(tiny_task, wait_s=0.05)
    folder = train.folder("r", task)
    ballast = full_disk / "ballast"

    def fill_for_a_while() -> None:
        until(lambda: bool(saved_steps(folder)), "a first checkpoint")
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        until(lambda: "a checkpoint could not be written" in caplog.text, "the news")
        ballast.unlink()

    with meanwhile(fill_for_a_while):
        result = train(task, OFTEN, run="r")
    assert "No space left on device" in caplog.text
    assert "training goes on, and the last good checkpoint is step-" in caplog.text
    assert result.outcome.attempts == 1
    assert losses(result) == losses(trained(CONFIG))
    assert saved_steps(folder)[-1] == STEPS


def test_checkpoints_on_s3_survive_an_outage_of_the_store(
    train: Trainings, trained, tiny_task: TinyTask, s3_outage, caplog
) -> None:
    caplog.set_level(logging.WARNING)
    bucket, stop, begin = s3_outage
    trainings = Trainings(bucket / "runs")
    task = replace(tiny_task, wait_s=0.1)
    folder = trainings.folder("r", task)

    def interrupt_storage() -> None:
        until(lambda: bool(saved_steps(folder)), "a first checkpoint")
        stop()
        time.sleep(3)
        begin()

    run = trainings.run("r")
    with run, meanwhile(interrupt_storage):
        result = fit(task, OFTEN, run=run, resources=resources(1))
    assert losses(result) == losses(trained(CONFIG))
    assert result.outcome.attempts == 1
    assert saved_steps(folder)[-1] == STEPS
    assert read_weights(result.last).keys() == read_weights(trained(CONFIG).last).keys()
    # The run goes on from the store alone: the same stage is only read.
    with trainings.run("r") as again:
        assert fit(task, OFTEN, run=again, resources=resources(1)).outcome == result.outcome


def test_two_trainings_of_one_run_in_two_threads_end_as_each_alone(
    train: Trainings, trained, tiny_task: TinyTask
) -> None:
    results, problems = {}, []

    def work(name: str, seed: int) -> None:
        try:
            task = replace(tiny_task, name=name)
            results[name] = fit(task, replace(CONFIG, seed=seed), run=run, resources=resources(1))
        except BaseException as error:
            problems.append(error)

    with train.run("r") as run, StopRequests():
        threads = [threading.Thread(target=work, args=(f"part-{n}", n)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        series = run.series()
    assert losses(results["part-0"]) == losses(results["part-1"]) == losses(trained(CONFIG))
    for name in ("part-0", "part-1"):
        assert series[name]["loss"].steps == list(range(1, STEPS + 1))
        assert run.record.stages[name].status == "finished"


def test_ctrl_c_in_the_main_thread_stops_a_training_in_another_and_one_that_begins_later(
    train: Trainings, tiny_task: TinyTask
) -> None:
    task = replace(tiny_task, wait_s=0.05)
    outcomes: list[BaseException] = []

    def work() -> None:
        for name in ("first", "second"):
            try:
                fit(replace(task, name=name), CONFIG, run=run, resources=resources(1))
            except BaseException as error:
                outcomes.append(error)

    folder = train.folder("r", replace(task, name="first"))
    saved: Callable[[], bool] = lambda: bool(saved_steps(folder))  # noqa: E731
    with train.run("r") as run, StopRequests():
        thread = threading.Thread(target=work)
        with meanwhile(signal_when(saved, signal.SIGTERM, "a checkpoint")):
            thread.start()
            thread.join()
    assert [type(error) for error in outcomes] == [Interrupted, Interrupted]
    assert "and saved" in str(outcomes[0])
    assert not committed(train.folder("r", replace(task, name="second")) / "checkpoints")


def test_a_node_that_is_taken_away_makes_training_save_at_once_and_go_on(
    somebody_elses_cluster: None, train: Trainings, trained, tiny_task: TinyTask, caplog
) -> None:
    caplog.set_level(logging.WARNING)
    config = replace(CONFIG, checkpoint=CheckpointConfig(every=STEPS, keep=5))
    task = replace(tiny_task, preempted=True)
    result = train(task, config)
    assert "a node is being taken away: saving at step" in caplog.text
    assert caplog.text.count("taken away") == 1
    steps = saved_steps(result.folder)
    assert len(steps) == 2
    assert steps[0] < STEPS == steps[1]
    assert steps_of(result) == list(range(1, STEPS + 1))
