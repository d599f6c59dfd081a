"""Weights in half precision, and what must not be."""

from __future__ import annotations

import torch

from models.decoder import DecoderLM
from models.decoder_config import deepseek_config
from models.expert_config import ExpertsConfig
from models.latent_config import LatentConfig
from models.precision import cast_weights


def test_weights_are_cast_and_what_chooses_experts_is_not() -> None:
    config = deepseek_config(
        vocab_size=61,
        width=32,
        layers=2,
        heads=4,
        head_width=8,
        feed_forward_width=48,
        latent=LatentConfig(width=20, rotary_width=6, value_width=10, query_width=0),
        experts=ExpertsConfig(routed=4, shared=1, per_token=2, width=16, gate="sigmoid"),
        max_positions=64,
    )
    model = DecoderLM(config, torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(61, (1, 20), generator=torch.Generator().manual_seed(1))
    bias = {name: value.clone() for name, value in model.named_buffers()}
    with torch.inference_mode():
        exact = model(ids)
        cast_weights(model, torch.bfloat16)
        rounded = model(ids)
    for name, parameter in model.named_parameters():
        is_router = name.endswith("router.weight")
        assert parameter.dtype == (torch.float32 if is_router else torch.bfloat16), name
    assert any(name.endswith("selection_bias") for name in bias)
    for name, value in model.named_buffers():
        assert value.dtype == bias[name].dtype, name
        assert torch.equal(value, bias[name]), name
    assert (rounded.float() - exact).abs().mean() < 0.1 * exact.abs().mean()
