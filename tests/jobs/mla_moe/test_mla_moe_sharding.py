"""Experts that are shared out over workers train like those on one, and survive another size."""

from __future__ import annotations

import dataclasses
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from mixture_task import HeldMixture, small_task
from trainings import Trainings, kill_when_held, losses, meanwhile, saved_steps, signal_when

from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig
from heliostat.errors import ConfigError, Interrupted, TrainingFailed
from heliostat.storage import Location
from heliostat.train.config import (
    BatchRampConfig,
    CheckpointConfig,
    FitConfig,
    OptimizerConfig,
    ZeroConfig,
)
from heliostat.train.fit import FitResult, fit
from heliostat.train.preflight import check_config
from heliostat.train.weights import read_weights
from jobs.mla_moe.tasks import MixtureLanguageModel

STEPS = 10
CONFIG = FitConfig(
    batch=8,
    micro_batch=2,
    steps=STEPS,
    optimizer=OptimizerConfig(lr=1e-3),
    clip=0.5,
    checkpoint=CheckpointConfig(every=2),
)
"""Clipping bites in every step."""
RISING = dataclasses.replace(CONFIG, batch_ramp=BatchRampConfig(start=4, increment=4, every=4))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> MixtureLanguageModel:
    return small_task(Location.of(tmp_path_factory.mktemp("tables")))


@pytest.fixture(scope="module")
def train(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(Location.of(tmp_path_factory.mktemp("runs")))


def resources(workers: int, shared: int | None) -> ResourcesConfig:
    return ResourcesConfig(
        workers=IntRange(workers, workers), cpus_per_worker=0.5, expert_parallel=shared
    )


def trained(
    train: Trainings,
    task: MixtureLanguageModel,
    workers: int,
    shared: int | None,
    stage: int,
    name: str | None = None,
    config: FitConfig = CONFIG,
) -> FitResult:
    config = dataclasses.replace(config, zero=ZeroConfig(stage=stage))
    with train.run(name) as run:
        return fit(task, config, run=run, resources=resources(workers, shared))


@pytest.fixture(scope="module")
def reference(train: Trainings, task: MixtureLanguageModel) -> FitResult:
    """One process, experts like any other weights."""
    return trained(train, task, 1, None, 0)


def _named(name: str, message: str) -> str:
    return f"{name}: {message}"


def assert_same(result: FitResult, reference: FitResult) -> None:
    assert losses(result) == pytest.approx(losses(reference), abs=1e-5)
    norms, expected = (
        [row["grad_norm"] for row in one.history() if "loss" in row] for one in (result, reference)
    )
    assert norms == pytest.approx(expected, rel=1e-3)
    found, whole = read_weights(result.last), read_weights(reference.last)
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(
            found[name], tensor, atol=1e-5, rtol=0, msg=partial(_named, name)
        )


@pytest.mark.parametrize(
    ("workers", "shared", "stage"),
    [
        pytest.param(2, 2, 1, id="2 workers, experts on 2, ZeRO 1"),
        *(
            pytest.param(
                workers,
                shared,
                stage,
                id=f"{workers} workers, experts on {shared}, ZeRO {stage}",
                marks=pytest.mark.slow,
            )
            for workers, shared in ((2, None), (2, 2), (2, 1), (1, 1))
            for stage in (0, 1, 2)
            if (workers, shared, stage) != (2, 2, 1)
        ),
    ],
)
def test_the_trajectory_is_that_of_one_process(
    train: Trainings,
    task: MixtureLanguageModel,
    reference: FitResult,
    workers: int,
    shared: int | None,
    stage: int,
) -> None:
    assert_same(trained(train, task, workers, shared, stage), reference)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_trajectory_of_a_batch_ramp_is_that_of_one_process(
    train: Trainings, task: MixtureLanguageModel, stage: int
) -> None:
    alone = trained(train, task, 1, None, 0, "alone", RISING)
    assert_same(trained(train, task, 2, 2, stage, config=RISING), alone)


@pytest.mark.slow
def test_a_training_goes_on_with_its_experts_on_another_number_of_workers(
    train: Trainings, task: MixtureLanguageModel, reference: FitResult
) -> None:
    folder = train.out / "resized" / "stages" / "lm"

    def is_saved() -> bool:
        return any(step >= 2 for step in saved_steps(folder))

    with (
        meanwhile(signal_when(is_saved, signal.SIGINT, "a checkpoint")),
        pytest.raises(Interrupted),
    ):
        trained(train, task, 2, 2, 1, "resized")
    assert saved_steps(folder)[-1] < STEPS
    assert_same(trained(train, task, 1, 1, 1, "resized"), reference)


@pytest.mark.slow
def test_a_killed_worker_that_holds_half_of_the_experts_is_replaced(
    train: Trainings, task: MixtureLanguageModel, reference: FitResult, tmp_path: Path
) -> None:
    held = HeldMixture(**vars(task), notes=Location.of(tmp_path / "notes"))
    assert held.notes is not None
    folder = train.out / "killed" / "stages" / "lm"
    with meanwhile(kill_when_held(held.notes, and_when=lambda: 4 in saved_steps(folder))):
        result = trained(train, held, 2, 2, 1, "killed")
    assert result.outcome.attempts == 2
    assert_same(result, reference)


@pytest.mark.slow
def test_a_worker_that_stands_still_fails_the_training_after_the_limit_and_it_can_go_on(
    train: Trainings, task: MixtureLanguageModel, reference: FitResult, tmp_path: Path
) -> None:
    held = HeldMixture(**vars(task), notes=Location.of(tmp_path / "notes"))
    config = dataclasses.replace(CONFIG, zero=ZeroConfig(stage=1), max_failures=0)
    placed = dataclasses.replace(resources(2, 2), expert_timeout_s=3.0)
    named = r"layer of experts 0, exchange of row counts: rank 0 waited 3\.\d s in vain"
    with train.run("stood-still") as run, pytest.raises(TrainingFailed, match=named):
        fit(held, config, run=run, resources=placed)
    with train.run("stood-still") as run:
        assert_same(fit(held, config, run=run, resources=placed), reference)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_in_bf16_shared_experts_train_like_those_that_are_not(
    train: Trainings, task: MixtureLanguageModel, stage: int
) -> None:
    config = dataclasses.replace(CONFIG, precision="bf16", zero=ZeroConfig(stage=stage))
    found = []
    for shared in (None, 2):
        with train.run(None) as run:
            found.append(losses(fit(task, config, run=run, resources=resources(2, shared))))
    assert max(found[0]) - min(found[0]) > 0.08
    # In bf16 another order of adding moves a token to another expert now and then.
    assert found[1] == pytest.approx(found[0], abs=0.01)


def test_stage_3_is_refused_in_one_sentence() -> None:
    config = dataclasses.replace(CONFIG, zero=ZeroConfig(stage=3))
    with pytest.raises(ConfigError, match=r"fit\.zero\.stage is 3 and resources\.expert_parallel"):
        check_config("fit", config, resources(2, 2))
