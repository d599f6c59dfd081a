"""Attention over short rows equals torch's, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.latent_paths import causal_expanded
from models.short_attention import LONGEST, short_causal_attention


@pytest.mark.parametrize("tokens", [1, 2, 37])
@pytest.mark.parametrize(("width", "value_width"), [(12, 7), (8, 20), (8, 8)])
def test_values_and_gradients(tokens: int, width: int, value_width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(3, tokens, 2, size, generator=generator, dtype=torch.float64)
        for size in (width, width, value_width)
    ]
    weight = torch.randn(3, tokens, 2, value_width, generator=generator, dtype=torch.float64)
    results = []
    for is_ours in (True, False):
        q, k, v = (one.clone().requires_grad_() for one in given)
        if is_ours:
            out = short_causal_attention(q, k, v, 0.3)
        else:
            heads = (one.transpose(1, 2) for one in (q, k, v))
            out = F.scaled_dot_product_attention(*heads, is_causal=True, scale=0.3).transpose(1, 2)
        (out * weight).sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_both_ways_agree_where_one_takes_over() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, LONGEST + 1, 2, size, generator=generator) for size in (12, 12, 6))
    long = causal_expanded(q, k, v, scale=0.3, mask=None)
    short = causal_expanded(q[:, :-1], k[:, :-1], v[:, :-1], scale=0.3, mask=None)
    torch.testing.assert_close(long[:, :-1], short, atol=1e-5, rtol=0)
