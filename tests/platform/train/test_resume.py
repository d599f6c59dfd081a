"""A training that was killed or stopped ends as if it had never been."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import pytest
from trainings import (
    CONFIG,
    RISING,
    STEPS,
    TRAIN_ROWS,
    ZERO,
    Trainings,
    kill_when_held,
    losses,
    meanwhile,
    resources,
    saved_steps,
    steps_of,
    stop_at,
    trained_ids,
    until,
)

from heliostat.checkpoint.manifest import committed
from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig
from heliostat.storage import Location
from heliostat.train.batch_schedule import ramp_steps, samples_in
from heliostat.train.config import CheckpointConfig, FitConfig
from heliostat.train.fit import FitResult, fit
from tiny_task import TinyTask


def expected_ids(task: TinyTask, step: int, config: FitConfig = CONFIG) -> set[int]:
    positions = range(samples_in(config, step - 1), samples_in(config, step))
    return {int(sample["id"]) for sample in task.train_data().samples(list(positions))}


def id_at(task: TinyTask, step: int, index: int) -> int:
    """The id of a sample of a step; sample i of a step is on worker i mod 2."""
    return int(task.train_data().samples([(step - 1) * CONFIG.batch + index])[0]["id"])


@pytest.mark.parametrize(
    ("config", "cluster"),
    [
        pytest.param(replace(CONFIG, micro_batch=3, zero=ZERO[2]), "ray_cluster", id="ZeRO 2"),
        pytest.param(
            replace(CONFIG, micro_batch=3, zero=ZERO[2]),
            "somebody_elses_cluster",
            id="ZeRO 2 on somebody else's cluster",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            replace(CONFIG, zero=ZERO[3]), "ray_cluster", id="ZeRO 3", marks=pytest.mark.slow
        ),
    ],
)
def test_after_kill_9_inside_an_accumulation_window_every_loss_is_bit_equal(
    train: Trainings,
    trained,
    tiny_task: TinyTask,
    tmp_path,
    caplog,
    request: pytest.FixtureRequest,
    config,
    cluster: str,
) -> None:
    caplog.set_level(logging.WARNING)
    reference = trained(config, workers=2)
    request.getfixturevalue(cluster)
    # The last sample of worker 1 in step 7 is in its last micro batch.
    held = id_at(tiny_task, 7, CONFIG.batch - 1)
    task = replace(tiny_task, hold_at_id=held, notes=Location.of(tmp_path / "notes"))
    assert task.notes is not None
    folder = train.folder("r", task)
    with meanwhile(kill_when_held(task.notes, and_when=lambda: 4 in saved_steps(folder))):
        result = train(task, config, workers=2, run="r")
    assert losses(result) == losses(reference)
    assert result.metrics == reference.metrics
    assert steps_of(result) == list(range(1, STEPS + 1))
    assert result.outcome.attempts == 2
    assert "goes on from step-00000004" in caplog.text
    seen = trained_ids(task.notes, [0, 4], config, 2)
    assert seen == {step: expected_ids(tiny_task, step) for step in range(1, STEPS + 1)}
    counted = sum(row["tokens_per_s"] * row["step_s"] for row in result.history() if "loss" in row)
    assert counted == pytest.approx(reference.outcome.counts["tokens"], rel=0.01)


@pytest.mark.parametrize(
    "stage", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_stopped_on_2_workers_gone_on_with_on_1_then_3_the_losses_are_those_of_one_start(
    train: Trainings, trained, tiny_task: TinyTask, tmp_path, stage: int
) -> None:
    notes = Location.of(tmp_path / "notes")
    task = replace(tiny_task, wait_s=0.2, notes=notes)
    config = replace(CONFIG, zero=ZERO[stage])
    first = stop_at(4, train, task, config, 2, "r")
    second = stop_at(first + 4, train, task, config, 1, "r")
    result = train(task, config, workers=3, run="r")
    reference = trained(replace(CONFIG, micro_batch=12))
    assert 4 <= first < second < STEPS
    assert losses(result) == pytest.approx(losses(reference), abs=1e-5)
    assert result.metrics["loss"] == pytest.approx(reference.metrics["loss"], abs=1e-5)
    assert steps_of(result) == list(range(1, STEPS + 1))


def test_killed_amid_a_batch_ramp_the_next_start_goes_on_with_the_next_sample(
    train: Trainings, trained, tiny_task: TinyTask, tmp_path
) -> None:
    config = replace(RISING, zero=ZERO[1])
    # Step 10 has 8 of the 12 samples of a whole batch; this is the last of them.
    held = int(tiny_task.train_data().samples([samples_in(config, 10) - 1])[0]["id"])
    notes = Location.of(tmp_path / "notes")
    task = replace(tiny_task, hold_at_id=held, notes=notes)
    folder = train.folder("r", task)
    with meanwhile(kill_when_held(notes, and_when=lambda: 8 in saved_steps(folder))):
        result = train(task, config, workers=2, run="r")
    reference = trained(config, workers=2)
    assert losses(result) == losses(reference)
    assert result.metrics == reference.metrics
    assert result.outcome.counts == reference.outcome.counts
    assert trained_ids(notes, [0, 8], config, 2) == {
        step: expected_ids(tiny_task, step, config) for step in range(1, STEPS + 1)
    }


def test_stopped_amid_a_batch_ramp_on_2_workers_it_goes_on_with_1_as_if_from_one_start(
    train: Trainings, trained, tiny_task: TinyTask
) -> None:
    task = replace(tiny_task, wait_s=0.2)
    stopped = stop_at(4, train, task, replace(RISING, zero=ZERO[2]), 2, "r")
    assert stopped < ramp_steps(RISING)
    (*_, (_, manifest)) = committed(train.folder("r", task) / "checkpoints")
    assert manifest.state.position == samples_in(RISING, stopped)
    result = train(task, replace(RISING, zero=ZERO[2]), run="r")
    reference = trained(RISING)
    assert losses(result) == pytest.approx(losses(reference), abs=1e-5)
    assert result.outcome.counts == reference.outcome.counts


@pytest.mark.slow
def test_stopped_at_the_last_step_of_an_epoch_the_next_epoch_begins_where_it_should(
    train: Trainings, trained, tiny_task: TinyTask, tmp_path
) -> None:
    """The batch is a divisor of the epoch here, so that a step ends exactly with an epoch."""
    last = TRAIN_ROWS // CONFIG.batch
    even = replace(tiny_task, head=last * CONFIG.batch)
    config = replace(CONFIG, checkpoint=CheckpointConfig(every=last))
    held = int(even.train_data().samples([last * CONFIG.batch])[0]["id"])
    notes = Location.of(tmp_path / "notes")
    task = replace(even, hold_at_id=held, hold_at_pass=2, notes=notes)
    folder = train.folder("r", task)
    with meanwhile(kill_when_held(notes, and_when=lambda: last in saved_steps(folder))):
        result = train(task, config, run="r")
    reference = train(even, config, run="reference")
    assert losses(result) == losses(reference)
    seen = trained_ids(notes, [0, last], config, 1)
    second_epoch = set().union(*(seen[step] for step in range(last + 1, 2 * last + 1)))
    assert second_epoch == set().union(*(seen[step] for step in range(1, last + 1)))


def test_a_run_goes_on_where_it_was_moved_to(train: Trainings, tiny_task: TinyTask) -> None:
    def second(trainings: Trainings) -> FitResult:
        """A second stage, which begins with the weights of the first."""
        with trainings.run("moved") as run:
            start = run.folder / "stages" / tiny_task.name / "weights" / "last"
            return fit(
                *(tiny_task, CONFIG),
                run=run, resources=resources(1), name="second", start_from=start,
            )  # fmt: skip

    first = train(tiny_task, run="moved")
    begun = second(train)
    elsewhere = Trainings(train.out / "elsewhere")
    elsewhere.out.make_dir()
    shutil.move(train.out.local_path / "moved", elsewhere.out.local_path)
    # Seconds are those of the training that was done: nothing is trained again.
    assert elsewhere(tiny_task, run="moved").seconds == first.seconds
    again = second(elsewhere)
    assert again.seconds == begun.seconds
    assert len(losses(again)) == STEPS


def test_a_truncated_newest_checkpoint_is_passed_over_and_said_so(
    train: Trainings, trained, tiny_task: TinyTask, caplog
) -> None:
    caplog.set_level(logging.WARNING)
    task = replace(tiny_task, wait_s=0.02, dropout=0.1)
    stopped = stop_at(8, train, task, CONFIG, 1, "r")
    folder = train.folder("r", task) / "checkpoints"
    newest = folder / f"step-{stopped:08d}"
    file = next(file for file in newest.list() if "model_states" in file.name)
    file.write_bytes(file.read_bytes()[:-100])
    (folder / "step-00000019" / "half.pt").write_bytes(b"an orphan")
    before = saved_steps(train.folder("r", task))[-2]
    result = train(task, CONFIG, run="r")
    assert f"checkpoint {newest.name} is damaged" in caplog.text
    assert f"goes on from step-{before:08d}" in caplog.text
    assert "removed unfinished checkpoints: step-00000019" in caplog.text
    assert losses(result) == losses(trained(CONFIG, dropout=0.1))
    assert result.metrics == trained(CONFIG, dropout=0.1).metrics


@pytest.mark.slow
def test_an_elastic_training_goes_on_with_more_workers_when_there_is_room(
    somebody_elses_cluster: None,
    train: Trainings,
    trained,
    tiny_task: TinyTask,
    tmp_path,
    caplog,
) -> None:
    import ray

    caplog.set_level(logging.WARNING)
    notes = Location.of(tmp_path / "notes")
    task = replace(tiny_task, hold_at_id=id_at(tiny_task, 7, 11), notes=notes)
    elastic = ResourcesConfig(workers=IntRange(1, 2), cpus_per_worker=2)
    folder = train.folder("r", task)
    # Takes half of the cluster, so that one worker fits; gone when that worker is killed.
    tenant = ray.remote(num_cpus=2)(Tenant).remote()
    ray.get(tenant.ready.remote())

    def make_room() -> None:
        until(lambda: 4 in saved_steps(folder), "a checkpoint")
        ray.kill(tenant)
        kill_when_held(notes)()

    with train.run("r") as run, meanwhile(make_room):
        result = fit(task, replace(CONFIG, zero=ZERO[1]), run=run, resources=elastic)
    assert "goes on from step-00000004, on 2 workers" in caplog.text
    assert losses(result) == pytest.approx(
        losses(trained(replace(CONFIG, micro_batch=12))), abs=1e-5
    )
    assert steps_of(result) == list(range(1, STEPS + 1))


class Tenant:
    """Somebody else on the cluster."""

    def ready(self) -> bool:
        return True
