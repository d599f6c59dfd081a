"""Learning-rate schedules, against the published figures and closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import ConfigError
from heliostat.train.config import ScheduleConfig
from heliostat.train.schedule import lr_factor, warmup_steps

COSINE = ScheduleConfig(decay="cosine", warmup_fraction=0.01)


def test_one_percent_of_14500_steps_is_145_warmup_steps_to_the_peak() -> None:
    assert warmup_steps(COSINE, 14_500) == 145
    assert lr_factor(COSINE, 145, 14_500) == 1.0
    assert lr_factor(COSINE, 29, 14_500) == pytest.approx(0.2, abs=1e-15)


def test_cosine_is_half_way_between_warmup_and_end_and_zero_at_the_end() -> None:
    total = 14_501  # 145 + 2 * 7178, so that the middle is a step
    schedule = ScheduleConfig(decay="cosine", warmup_steps=145)
    assert lr_factor(schedule, 145 + (total - 145) // 2, total) == pytest.approx(0.5, abs=1e-12)
    for below, above in ((145 + 14_355 // 2, 145 + 14_355 // 2 + 1),):
        assert lr_factor(COSINE, below, 14_500) > 0.5 > lr_factor(COSINE, above, 14_500)
    assert lr_factor(COSINE, 14_500, 14_500) == pytest.approx(0.0, abs=1e-15)


def test_ten_percent_of_976_steps_is_98_warmup_steps() -> None:
    linear = ScheduleConfig(decay="linear", warmup_fraction=0.1)
    assert warmup_steps(linear, 976) == 98
    assert lr_factor(linear, 98, 976) == 1.0
    assert lr_factor(linear, 976, 976) == pytest.approx(0.0, abs=1e-15)


def test_cosine_equals_its_closed_form_at_every_step() -> None:
    total, warm = 976, 10
    for step in range(1, total + 1):
        progress = (step - warm) / (total - warm)
        expected = step / warm if step <= warm else (1 + math.cos(math.pi * progress)) / 2
        assert lr_factor(COSINE, step, total) == pytest.approx(expected, abs=1e-12)


def test_milestones_multiply_the_rate_after_their_share_of_the_run() -> None:
    schedule = ScheduleConfig(
        decay="milestones", warmup_steps=0, milestones=[0.8, 0.9], milestone_factor=0.316
    )
    rates = [lr_factor(schedule, step, 100) for step in (80, 81, 90, 91, 100)]
    assert rates == pytest.approx([1, 0.316, 0.316, 0.316**2, 0.316**2])


def test_milestones_without_their_decay_are_refused() -> None:
    with pytest.raises(ConfigError, match="milestones are given exactly when"):
        ScheduleConfig(decay="cosine", milestones=[0.5])


@given(
    total=st.integers(1, 5000),
    fraction=st.floats(0, 0.99),
    final=st.floats(0, 1),
    decay=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_a_rate_is_positive_at_first_never_above_the_peak_and_ends_where_it_should(
    total: int, fraction: float, final: float, decay: str
) -> None:
    schedule = ScheduleConfig(decay=decay, warmup_fraction=fraction, final_fraction=final)
    rates = [lr_factor(schedule, step, total) for step in {1, total // 2 + 1, total}]
    assert all(-1e-12 <= rate <= 1 + 1e-12 for rate in rates)
    if warmup_steps(schedule, total) < total:
        end = 1.0 if decay == "constant" else final
        assert lr_factor(schedule, total, total) == pytest.approx(end, abs=1e-9)
