"""What cannot work is refused before anything starts, in one sentence with the way out."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from torch import nn
from trainings import CONFIG, resources

from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig
from heliostat.errors import ConfigError, InfeasibleError
from heliostat.train.batch_schedule import total_steps
from heliostat.train.config import FitConfig, OptimizerConfig, ZeroConfig
from heliostat.train.engine import enable_activation_checkpointing
from heliostat.train.fit import fit
from heliostat.train.preflight import allowed_workers, check_config


def test_fp16_on_a_cpu_is_refused_and_bf16_offered() -> None:
    with pytest.raises(ConfigError, match=r"dapt\.precision is fp16.*on a CPU use bf16 or fp32"):
        check_config("dapt", replace(CONFIG, precision="fp16"), resources(1))


def test_elastic_workers_are_those_that_can_share_the_batch() -> None:
    config = replace(CONFIG, batch=32, micro_batch=2)
    elastic = ResourcesConfig(workers=IntRange(2, 10))
    assert allowed_workers(config, elastic) == (2, 4, 8)
    check_config("dapt", config, elastic)
    with pytest.raises(ConfigError, match=r"batch 32 cannot be cut.*on 7 workers.*nearest is"):
        check_config("dapt", config, ResourcesConfig(workers=IntRange(5, 7)))
    with pytest.raises(ConfigError, match=r"batch 32 cannot be cut.*on 3 workers"):
        check_config("dapt", config, ResourcesConfig(workers=IntRange(3, 3)))


def test_steps_and_epochs_are_given_one_at_a_time() -> None:
    with pytest.raises(ConfigError, match="give exactly one of them"):
        FitConfig(steps=3, epochs=1.0)
    with pytest.raises(ConfigError, match="give exactly one of them"):
        FitConfig()


def test_epochs_become_whole_batches_and_too_few_samples_are_refused() -> None:
    assert total_steps(FitConfig(batch=10, epochs=2.5), 103) == 25
    with pytest.raises(ConfigError, match="lower batch to 7 or less"):
        total_steps(FitConfig(batch=10, epochs=1.0), 7)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ZeroConfig(stage=0, offload_optimizer=True), "offload_optimizer needs stage"),
        (lambda: ZeroConfig(stage=2, offload_parameters=True), "offload_parameters needs stage 3"),
        (lambda: OptimizerConfig(lr=0), "learning rate is above 0"),
        (lambda: FitConfig(steps=1, clip=0.0), "clip is 0.0, but it must be above 0, or null"),
        (
            lambda: FitConfig(
                steps=1,
                optimizer=OptimizerConfig(name="sgd"),
                zero=ZeroConfig(stage=2, offload_optimizer=True),
            ),
            "only adamw can be offloaded",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(make, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_activation_checkpointing_of_a_model_without_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no module with a `checkpoint_activations`"):
        enable_activation_checkpointing(nn.Linear(2, 2))


def test_a_hundred_gpus_are_refused_in_seconds_saying_what_there_is(train, tiny_task) -> None:
    began = time.monotonic()
    wanted = ResourcesConfig(workers=IntRange(100, 100), gpus_per_worker=1)
    config = replace(CONFIG, batch=200)
    with (
        pytest.raises(InfeasibleError, match=r"100 workers.*can never be placed.*4 CPUs"),
        train.run() as run,
    ):
        fit(tiny_task, config, run=run, resources=wanted)
    assert time.monotonic() - began < 10
