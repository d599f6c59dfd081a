"""RMSNorm: torch's values and gradients, by its own way on CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from models.rms_norm import RMSNorm


def pair(width: int, dtype: torch.dtype) -> tuple[RMSNorm, nn.RMSNorm]:
    ours, theirs = RMSNorm(width, eps=1e-6).to(dtype), nn.RMSNorm(width, eps=1e-6).to(dtype)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 5, 8), (1, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)],
)
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    ours, theirs = pair(shape[-1], dtype)
    x = torch.randn(shape, dtype=dtype)
    slope = torch.randn(shape, dtype=dtype)
    found = []
    for norm in (ours, theirs):
        own = x.clone().requires_grad_()
        out = norm(own)
        out.backward(slope)
        found.append((out, own.grad, norm.weight.grad))
    for mine, peer in zip(*found, strict=True):
        torch.testing.assert_close(mine, peer, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    norm, _ = pair(6, torch.float64)
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, _: norm(x), (x, norm.weight))


def test_it_may_be_part_of_a_frozen_model_and_of_one_that_is_not_trained() -> None:
    norm, theirs = pair(8, torch.float32)
    norm.requires_grad_(requires_grad=False)
    x = torch.randn(3, 8, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None
    with torch.inference_mode():
        torch.testing.assert_close(norm(x), theirs(x))


def test_rows_that_are_not_contiguous_and_all_zero_rows() -> None:
    ours, theirs = pair(4, torch.float32)
    x = torch.randn(4, 6).t()
    x[0] = 0
    assert not x.is_contiguous()
    for norm in (ours, theirs):
        own = x.clone().requires_grad_()
        norm(own.transpose(0, 1).transpose(0, 1)).sum().backward()
        assert torch.isfinite(own.grad).all()
    torch.testing.assert_close(ours(x), theirs(x))
