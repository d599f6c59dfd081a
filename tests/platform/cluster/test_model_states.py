"""Memory, FLOPs and time of the published sizes, and invariants of the sharding."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.cluster.flops import AttentionShape, training_flops
from heliostat.cluster.model_states import checkpoint_bytes, model_state_bytes, weights_bytes


class Published(NamedTuple):
    """One column of the table for 30.4 billion tokens in rows of 2048."""

    parameters: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    gpus: int
    stage: int
    state_gb: float
    flops: float
    hours: float


TABLE = {
    "410m": Published(405_334_016, 50304, 1024, 24, 16, 8, 1, 2.2, 7.4e19, 6.5),
    "1.4b": Published(1_414_647_808, 50304, 2048, 24, 16, 8, 1, 7.8, 2.6e20, 23),
    "2.8b": Published(2_775_208_960, 50304, 2560, 32, 32, 8, 2, 10.4, 5.1e20, 45),
    "6.9b": Published(6_857_302_016, 50432, 4096, 32, 32, 16, 3, 6.9, 1.26e21, 55),
    "12b": Published(11_846_072_320, 50688, 5120, 36, 40, 32, 3, 5.9, 2.2e21, 48),
}
TOKENS = 14_500 * 1024 * 2048


@pytest.mark.parametrize("size", TABLE)
def test_state_per_gpu_is_that_of_the_table(size: str) -> None:
    row = TABLE[size]
    state = model_state_bytes(row.parameters, row.stage, row.gpus, "bf16")
    assert round(state.device / 1e9, 1) == row.state_gb


@pytest.mark.parametrize("size", TABLE)
def test_flops_and_time_are_those_of_the_table(size: str) -> None:
    row = TABLE[size]
    head = row.width // row.heads
    attention = AttentionShape(row.layers, row.heads, head, head, context=2048)
    without_look_up = row.parameters - row.vocabulary * row.width
    flops = training_flops(without_look_up, TOKENS, attention)
    digits = 3 if size == "6.9b" else 2
    assert float(f"{flops:.{digits}g}") == row.flops
    hours = flops / (row.gpus * 0.4 * 989e12) / 3600
    assert hours == pytest.approx(row.hours, abs=0.5)


def test_mixed_adam_takes_16_bytes_a_parameter_and_sharding_all_of_it_divides_them() -> None:
    assert model_state_bytes(1000, 0, 1, "bf16").device == 16_000
    assert model_state_bytes(1000, 3, 8, "bf16").device == 2_000


def test_plain_fp32_adam_takes_16_bytes_and_zero_adds_a_flat_master() -> None:
    assert model_state_bytes(1000, 0, 1, "fp32").device == 16_000
    assert model_state_bytes(1000, 1, 1, "fp32").device == 20_000


def test_frozen_parameters_have_weights_only() -> None:
    state = model_state_bytes(1000, 0, 1, "bf16", trainable=10)
    assert (state.weights, state.gradients, state.optimizer) == (2000, 20, 120)


def test_sgd_has_one_moment() -> None:
    assert model_state_bytes(1000, 0, 1, "fp32", optimizer="sgd").optimizer == 4_000


def test_offloading_moves_state_to_the_host() -> None:
    plain = model_state_bytes(1000, 3, 4, "bf16")
    moved = model_state_bytes(1000, 3, 4, "bf16", offload_optimizer=True, offload_parameters=True)
    assert moved.device == 0
    # Gradients are kept in fp32 for the host's step.
    assert moved.host == plain.weights + plain.optimizer + 4 * 1000 / 4


@given(
    parameters=st.integers(1, 10**12),
    world_size=st.integers(1, 4096),
    precision=st.sampled_from(["bf16", "fp16"]),
)
def test_a_higher_stage_never_needs_more(parameters: int, world_size: int, precision: str) -> None:
    needs = [
        model_state_bytes(parameters, stage, world_size, precision).device for stage in range(4)
    ]
    assert needs == sorted(needs, reverse=True)
    assert needs[3] * world_size == pytest.approx(16 * parameters)


def test_checkpoints_hold_weights_and_optimiser_state() -> None:
    assert checkpoint_bytes(1000, 1, "bf16") == 14_000
    assert checkpoint_bytes(1000, 0, "fp32") == 12_000
    assert weights_bytes(1000) == 4_000
