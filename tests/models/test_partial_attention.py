"""Attention in parts equals attention at once, however the parts were computed."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from models.partial_attention import merge, partial_attention


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("cuts", [(0, 40), (0, 7, 40), (0, 1, 2, 23, 40)])
def test_parts_merge_to_the_whole(cuts: tuple[int, ...], needs_gradient: bool) -> None:
    q, k, v = draw(2, 3, 5, 8), draw(2, 3, 40, 8), draw(2, 3, 40, 6)
    q.requires_grad_(needs_gradient)
    parts = [
        partial_attention(q, k[:, :, start:stop], v[:, :, start:stop], scale=0.3)
        for start, stop in itertools.pairwise(cuts)
    ]
    whole = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(merge(parts), whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_kernel_and_the_formed_scores_agree(dtype: torch.dtype) -> None:
    """Holds the private operator of torch to what it is used for."""
    q, k, v = draw(2, 3, 33, 16, dtype=dtype), draw(2, 1, 33, 16, dtype=dtype), draw(2, 1, 33, 8)
    v = v.to(dtype)
    fused = partial_attention(q, k, v, scale=0.2, is_causal=True)
    formed = partial_attention(q.clone().requires_grad_(), k, v, scale=0.2, is_causal=True)
    torch.testing.assert_close(fused.out, formed.out, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.log_sum, formed.log_sum, atol=1e-5, rtol=0)


def test_the_last_queries_see_the_last_keys() -> None:
    q, k, v = draw(1, 2, 4, 8), draw(1, 2, 9, 8), draw(1, 2, 9, 8)
    visible = torch.ones(4, 9, dtype=torch.bool).tril(5)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=1.0)
    part = partial_attention(q, k, v, scale=1.0, is_causal=True)
    torch.testing.assert_close(part.out, expected, atol=1e-10, rtol=0)


def test_a_query_that_sees_no_key_adds_nothing() -> None:
    q, k, v = draw(1, 1, 2, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 4)
    blind = torch.zeros(2, 3, dtype=torch.float64)
    blind[1] = float("-inf")
    part = partial_attention(q, k, v, scale=1.0, mask=blind)
    assert part.out[0, 0, 1].tolist() == [0.0] * 4
    full = partial_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(merge([part, full])[0, 0, 1], full.out[0, 0, 1])
