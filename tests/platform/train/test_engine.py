"""What DeepSpeed is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainings import CONFIG, ZERO

from heliostat.data.reader import BatchPlan
from heliostat.train.engine import REDUCE_BUCKET, deepspeed_config


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("trained", "bucket"), [(1_000, 1_000), (10**10, REDUCE_BUCKET)])
def test_the_buffer_of_gradients_is_no_larger_than_they_are(
    stage: int, trained: int, bucket: int
) -> None:
    plan = BatchPlan(CONFIG.batch, CONFIG.micro_batch, world_size=2, accumulation=3)
    told = deepspeed_config(
        replace(CONFIG, zero=ZERO[stage]), plan, trained=trained, universal=False
    )
    assert told["zero_optimization"]["reduce_bucket_size"] == bucket
