"""Rotary positions against complex numbers, and the positions that masks imply."""

from __future__ import annotations

import torch

from models.attention_mask import additive_mask, derived_positions, is_right_padded
from models.rotary import rotary_tables, rotate


def test_rotation_is_multiplication_of_half_split_pairs_by_a_phase() -> None:
    x = torch.randn(2, 7, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.arange(7)[None] * 5
    tables = rotary_tables(positions, rotary_width=12, base=10_000.0, dtype=torch.float64)
    frequencies = 10_000.0 ** (-2 * torch.arange(6, dtype=torch.float64) / 12)
    phases = torch.polar(torch.ones(6, dtype=torch.float64), positions[0, :, None] * frequencies)
    pairs = torch.complex(x[..., :6], x[..., 6:12]) * phases[:, None]
    expected = torch.cat([pairs.real, pairs.imag, x[..., 12:]], dim=-1)
    torch.testing.assert_close(rotate(x, tables), expected, atol=1e-5, rtol=1e-5)


def test_angles_are_not_rounded_to_the_dtype_of_the_model() -> None:
    positions = torch.tensor([[1001]])
    full = rotary_tables(positions, rotary_width=8, base=10_000.0, dtype=torch.float32)
    half = rotary_tables(positions, rotary_width=8, base=10_000.0, dtype=torch.bfloat16)
    torch.testing.assert_close(half.cos.float(), full.cos, atol=4e-3, rtol=0)


def test_positions_count_real_tokens_from_zero() -> None:
    ids = torch.zeros(3, 5, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]])
    positions = derived_positions(ids, mask, None)
    assert [row[keep].tolist() for row, keep in zip(positions, mask.bool(), strict=True)] == [
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2],
    ]
    assert derived_positions(ids, None, None).tolist() == [[0, 1, 2, 3, 4]]


def test_positions_restart_at_each_document() -> None:
    ids = torch.zeros(2, 6, dtype=torch.long)
    documents = torch.tensor([[4, 4, 4, 9, 9, 1], [0, 1, 1, 1, 1, 2]])
    assert derived_positions(ids, None, documents).tolist() == [
        [0, 1, 2, 0, 1, 0],
        [0, 0, 1, 2, 3, 0],
    ]


def test_mask_is_left_out_exactly_where_causal_attention_suffices() -> None:
    right = torch.tensor([[1, 1, 0], [1, 1, 1]])
    left = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert is_right_padded(right)
    assert not is_right_padded(left)
    assert additive_mask(None, None, torch.float32) is None
    assert additive_mask(right, None, torch.float32) is None
    inf = float("inf")
    assert additive_mask(left, None, torch.float32)[0, 0].tolist() == [
        [0, -inf, -inf],
        [-inf, 0, -inf],
        [-inf, 0, 0],
    ]
