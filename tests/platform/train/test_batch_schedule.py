"""Batches of each step: a ramp against a loop over its steps, and against the published one."""

from __future__ import annotations

import math
from dataclasses import fields, make_dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainings import CONFIG, Trainings

from heliostat.config.dump import differing_keys, digest_of
from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig
from heliostat.data.reader import step_positions
from heliostat.errors import ConfigError
from heliostat.storage import Location
from heliostat.train.batch_schedule import plan_at, ramp_steps, samples_at, samples_in, total_steps
from heliostat.train.config import BatchRampConfig, FitConfig
from heliostat.train.fit import training_digest
from heliostat.train.preflight import allowed_workers, check_config
from heliostat.train.progress import Progress
from tiny_task import TinyTask

RAMP = BatchRampConfig(start=4, increment=4, every=3)
SHORT = replace(CONFIG, batch_ramp=RAMP)


@st.composite
def configs(draw: st.DrawFn) -> FitConfig:
    """With a ramp whose batches 1, 2 or 3 workers can share, or without one."""
    unit = draw(st.integers(1, 3)) * 6
    start, growths, each = (draw(st.integers(*bounds)) for bounds in ((1, 5), (0, 8), (1, 3)))
    return FitConfig(
        batch=(start + growths * each) * unit,
        micro_batch=unit // 6,
        batch_ramp=draw(
            st.one_of(
                st.none(),
                st.builds(
                    BatchRampConfig,
                    start=st.just(start * unit),
                    increment=st.just(each * unit),
                    every=st.integers(1, 7),
                ),
            )
        ),
        steps=1,
    )


@given(config=configs(), steps=st.integers(0, 90))
def test_samples_are_the_sum_over_the_steps(config: FitConfig, steps: int) -> None:
    by_step = [samples_at(config, step) for step in range(1, steps + 1)]
    assert samples_in(config, steps) == sum(by_step)


@given(config=configs())
def test_batches_grow_from_the_first_to_the_whole_in_equal_increments(config: FitConfig) -> None:
    last = ramp_steps(config)
    batches = [samples_at(config, step) for step in range(1, last + 10)]
    ramp = config.batch_ramp
    assert batches[0] == (config.batch if ramp is None else ramp.start)
    assert {*batches[last:]} == {config.batch}
    assert all(batch < config.batch for batch in batches[:last])
    growths = [after - before for before, after in pairwise(batches)]
    assert {*growths} <= {0, 0 if ramp is None else ramp.increment}


@given(config=configs(), step=st.integers(1, 90))
def test_the_batch_of_a_step_is_the_same_on_all_workers_that_are_allowed(
    config: FitConfig, step: int
) -> None:
    allowed = allowed_workers(config, ResourcesConfig(workers=IntRange(1, 8)))
    assert {1, 2, 3} <= {*allowed}
    start = samples_in(config, step - 1)
    for workers in allowed:
        plan = plan_at(config, step, workers)
        assert plan.accumulation * config.micro_batch * workers == samples_at(config, step)
        ranks = [step_positions(plan, rank, start) for rank in range(workers)]
        seen = sorted(at for micro_batches in ranks for cut in micro_batches for at in cut)
        assert seen == list(range(start, samples_in(config, step)))


@given(config=configs(), samples=st.integers(1, 3000))
def test_epochs_are_as_many_whole_batches_as_there_are_samples_for(
    config: FitConfig, samples: int
) -> None:
    config = replace(config, steps=None, epochs=1.0)
    if samples < samples_at(config, 1):
        with pytest.raises(ConfigError, match=f"do not fill one batch .* to {samples} or less"):
            total_steps(config, samples)
        return
    steps = total_steps(config, samples)
    assert samples_in(config, steps) <= samples < samples_in(config, steps + 1)


def test_the_samples_before_any_step_are_known_at_once() -> None:
    config = replace(SHORT, steps=10**15, batch_ramp=replace(RAMP, every=10**14))
    assert samples_in(config, 10**15) == 10**14 * (4 + 8) + 8 * 10**14 * 12


@pytest.mark.parametrize(
    ("ramp", "sentence"),
    [
        ({"start": 0}, "start is 0, but it must be 1 or more"),
        ({"every": 0}, "every is 0, but it must be 1 or more"),
        ({"start": 16}, "batch_ramp.start is 16 and batch is 12: a ramp starts at the batch or"),
        ({"increment": 5}, "increment is 5, which does not lead .* nearest is batch 9 or 14"),
    ],
)
def test_ramps_that_cannot_be_are_refused(ramp: dict[str, int], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        replace(CONFIG, batch_ramp=replace(RAMP, **ramp))
    assert "\n" not in str(caught.value)


def test_a_ramp_that_the_workers_cannot_share_is_refused() -> None:
    six = ResourcesConfig(workers=IntRange(6, 6))
    check_config("dapt", CONFIG, six)
    with pytest.raises(
        ConfigError,
        match=r"dapt: batch_ramp.start is 4 and batch_ramp.increment is 4, but micro batches of 2 "
        r"on 6 workers are 12 samples at a time: give multiples of that",
    ):
        check_config("dapt", SHORT, six)
    assert allowed_workers(SHORT, ResourcesConfig(workers=IntRange(1, 6))) == (1, 2)


def test_a_config_without_a_ramp_keeps_the_digest_it_had_before_there_were_ramps() -> None:
    before: dict = {"seed": 0, "dapt": {"fit": {"batch": 12}}}
    without: dict = {"seed": 0, "dapt": {"fit": {"batch": 12, "batch_ramp": None}}}
    rising: dict = {"seed": 0, "dapt": {"fit": {"batch": 12, "batch_ramp": {"start": 4}}}}
    assert digest_of(without) == digest_of(before) != digest_of(rising)
    assert differing_keys(before, {**without, "seed": 1}) == ["seed"]


def test_a_training_without_a_ramp_keeps_its_digest_and_goes_on(
    tiny_task: TinyTask, tmp_path: Path
) -> None:
    names = [field.name for field in fields(FitConfig) if field.name != "batch_ramp"]
    before = make_dataclass("FitConfig", names)(*(getattr(CONFIG, name) for name in names))
    text = f"{tiny_task!r}|{before!r}|None"
    with Trainings(Location.of(tmp_path)).run() as run:
        plain, ramped = (
            training_digest(tiny_task, config, None, run) for config in (CONFIG, SHORT)
        )
    assert plain == sha256(text.encode()).hexdigest()[:12]
    assert plain != ramped


def test_the_time_that_is_left_is_reckoned_by_samples_not_by_steps() -> None:
    steps = ramp_steps(SHORT) + 1
    progress = Progress("tiny", replace(SHORT, steps=steps), steps)
    rows = [{"step": float(step), "loss": 1.0, "step_s": 4.0} for step in (2, 3)]
    # 8 samples took 8 seconds; of 4 + 4 + 4 + 8 + 8 + 8 + 12 samples 12 are done.
    assert math.isclose(progress._left_s(rows), 36.0)
