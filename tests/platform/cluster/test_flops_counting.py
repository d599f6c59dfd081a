"""FLOPs by formula and by torch's counter, and the share of the peak they make."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heliostat.cluster.flops import (
    AttentionShape,
    measure_flops,
    model_flops_utilisation,
    training_flops,
)
from heliostat.errors import Fault

H100 = "NVIDIA H100 80GB HBM3"


def test_counter_and_formula_agree_on_a_perceptron() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    x = torch.randn(10, 64, requires_grad=True)
    measured = measure_flops(model, lambda: model(x).sum().backward())
    assert measured == training_flops(2 * 64 * 256, 10, None)


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_on_the_cpu_is_counted(causal: bool) -> None:
    batch, heads, rows, width = 2, 3, 64, 16

    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=causal)

    x = torch.randn(batch, heads, rows, width, requires_grad=True)
    model = Attention()
    measured = measure_flops(model, lambda: model(x).sum().backward())
    # Two products forward, four backward, each 2 B H T^2 D, the whole square whatever the mask.
    assert measured == 6 * 2 * batch * heads * rows**2 * width


def test_counting_what_never_calls_the_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(Fault, match="never called the model"):
        measure_flops(model, lambda: None)


def test_v2_lite_needs_16_4_gigaflops_a_token() -> None:
    attention = AttentionShape(
        layers=27, heads=16, query_width=128 + 64, value_width=128, context=4096
    )
    assert training_flops(2.45e9, 1, attention) == pytest.approx(16.4e9, rel=2e-3)


def test_causal_attention_counts_half_of_the_matrix() -> None:
    def extra(is_causal: bool) -> float:
        shape = AttentionShape(2, 4, 8, 8, context=32, is_causal=is_causal)
        return training_flops(0, 1, shape)

    assert extra(False) == 12 * 2 * 4 * 8 * 32
    assert extra(True) == extra(False) / 2


def test_mfu_is_flops_over_time_over_dense_peak() -> None:
    assert model_flops_utilisation(989e12, 10.0, 1, H100, "bf16") == pytest.approx(0.1)
    assert model_flops_utilisation(8 * 989e12, 10.0, 8, H100, "bf16") == pytest.approx(0.1)


@pytest.mark.parametrize("device", [None, "CPU", "NVIDIA H20", "GeForce GTX 1080"])
def test_no_mfu_where_the_peak_is_unknown(device: str | None) -> None:
    assert model_flops_utilisation(1e12, 1.0, 1, device, "bf16") is None


def test_an_impossible_mfu_is_an_error_and_not_a_number() -> None:
    with pytest.raises(Fault, match=r"MFU would be 200%.*H100"):
        model_flops_utilisation(2 * 989e12, 1.0, 1, H100, "bf16")
