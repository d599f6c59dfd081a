"""Logits equal to transformers' deepseek_v2 and deepseek_v3, and checkpoints both ways."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config

from models.counting import DEEPSEEK
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, decoder_config_from, deepseek_config
from models.expert_config import ExpertsConfig
from models.fp8 import BLOCK
from models.hf_config import from_hf_config, to_hf_config
from models.hf_layout import from_hf, to_hf
from models.latent_config import LatentConfig
from models.yarn import YarnConfig

YARN = YarnConfig(factor=40.0, original_positions=32, mscale=0.707, mscale_all_dim=0.707)
UNEVEN = dataclasses.replace(YARN, factor=4.0, mscale=1.0, mscale_all_dim=0.5)
V2 = deepseek_config(
    vocab_size=97,
    width=64,
    layers=3,
    heads=4,
    head_width=16,
    feed_forward_width=96,
    max_positions=1280,
    initial_std=0.1,
    latent=LatentConfig(width=32, rotary_width=8, value_width=12, query_width=24),
    experts=ExpertsConfig(
        routed=16,
        shared=2,
        per_token=3,
        width=24,
        dense_layers=1,
        groups=4,
        groups_per_token=2,
        scale=1.3,
    ),
)
assert V2.experts is not None
V3 = dataclasses.replace(
    V2, experts=dataclasses.replace(V2.experts, gate="sigmoid", normalised=True, scale=2.5)
)
LITE = dataclasses.replace(
    V2,
    latent=LatentConfig(width=32, rotary_width=8, value_width=12),
    experts=dataclasses.replace(V2.experts, groups=1, groups_per_token=1),
)
STYLES = {"v2": V2, "v2-lite": LITE, "v3": V3}
SHAPES = [
    pytest.param(dataclasses.replace(config, yarn=yarn), id=f"{name} {label}")
    for name, config in STYLES.items()
    for label, yarn in (("plain", None), ("yarn", YARN))
] + [pytest.param(dataclasses.replace(V3, yarn=UNEVEN), id="v3 uneven")]


def model_of(config: DecoderConfig) -> DecoderLM:
    model = DecoderLM(config, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor += torch.randn(tensor.shape, generator=generator) * 0.03
    return model


def write(config: DecoderConfig, model: DecoderLM, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(to_hf_config(config)))
    state = {name: value.contiguous() for name, value in to_hf(model.state_dict(), config).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("config", SHAPES)
def test_transformers_loads_what_is_written_and_gives_the_same_logits(
    config: DecoderConfig, tmp_path: Path
) -> None:
    model = model_of(config)
    write(config, model, tmp_path)
    peer, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    ids = tokens(64, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), peer.eval()(ids).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", SHAPES)
def test_a_checkpoint_of_transformers_is_read_with_equal_logits(
    config: DecoderConfig, tmp_path: Path
) -> None:
    kind = DeepseekV3Config if config.experts.gate == "sigmoid" else DeepseekV2Config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = AutoModelForCausalLM.from_config(kind(**to_hf_config(config))).eval()
        with torch.no_grad():
            for tensor in peer.parameters():
                tensor += torch.randn_like(tensor) * 0.05
    peer.save_pretrained(tmp_path)
    read = from_hf_config(json.loads((tmp_path / "config.json").read_text()))
    assert read == config
    model = DecoderLM(read, torch.Generator()).eval()
    model.load_state_dict(from_hf(load_file(tmp_path / "model.safetensors"), read))
    ids = tokens(8, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), peer(ids).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", SHAPES)
def test_the_round_trip_keeps_every_bit(config: DecoderConfig, tmp_path: Path) -> None:
    model = model_of(config)
    write(config, model, tmp_path)
    back = from_hf(load_file(tmp_path / "model.safetensors"), config)
    state = model.state_dict()
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name
    if config.experts.has_bias:
        files = load_file(tmp_path / "model.safetensors")
        assert files["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


@pytest.mark.parametrize("config", [*STYLES.values(), *DEEPSEEK.values()])
def test_configs_survive_both_translations(config: DecoderConfig) -> None:
    for one in (config, dataclasses.replace(config, yarn=YARN)):
        assert from_hf_config(to_hf_config(one)) == one
        assert decoder_config_from(json.loads(json.dumps(dataclasses.asdict(one)))) == one


def test_the_older_spelling_alone_is_read_too() -> None:
    config = dataclasses.replace(V2, yarn=YARN)
    values = to_hf_config(config)
    del values["rope_parameters"]
    assert from_hf_config(values) == config


def test_layers_of_v3_that_predict_a_second_token_are_left_out() -> None:
    state = to_hf(model_of(V3).state_dict(), V3)
    extra = {"model.layers.3.eh_proj.weight": torch.zeros(1), "model.layers.3.x": torch.zeros(1)}
    assert from_hf(state | extra, V3).keys() == model_of(V3).state_dict().keys()


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key != name}


def test_what_is_missing_extra_or_of_another_shape_is_refused() -> None:
    state = to_hf(model_of(V3).state_dict(), V3)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    gate = "model.layers.2.mlp.experts.7.gate_proj.weight"
    with pytest.raises(ValueError, match=f"missing {bias}"):
        from_hf(without(state, bias), V3)
    with pytest.raises(ValueError, match=f"missing {gate}"):
        from_hf(without(state, gate), V3)
    with pytest.raises(ValueError, match=r"unknown model\.more"):
        from_hf(state | {"model.more": torch.zeros(1)}, V3)
    with pytest.raises(ValueError, match=f"{gate} has shape"):
        from_hf(state | {gate: torch.zeros(3, 3)}, V3)


def test_fp8_weights_need_their_scales_and_are_multiplied_by_them() -> None:
    state = to_hf(model_of(V3).state_dict(), V3)
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    scale = 0.01
    small = (state[name] / scale).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=f"{name} is stored as .* but {name}_scale_inv is missing"):
        from_hf(state | {name: small}, V3)
    blocks = [-(-size // BLOCK) for size in small.shape]
    scales = {f"{name}_scale_inv": torch.full(blocks, scale)}
    read = from_hf(state | {name: small} | scales, V3)
    key = "decoder.blocks.1.attention.key_value_up.weight"
    torch.testing.assert_close(read[key], small.float() * scale)
    with pytest.raises(ValueError, match="scale_inv has shape"):
        from_hf(state | {name: small, f"{name}_scale_inv": torch.ones(9, 9)}, V3)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (dataclasses.replace(V2, width=66), "width .66. must be a multiple of heads"),
        (
            dataclasses.replace(V2, experts=dataclasses.replace(V2.experts, normalised=True)),
            "normalised must be false",
        ),
        (dataclasses.replace(V2, experts=None), "experts is None"),
        (dataclasses.replace(V2, latent=None), "latent is None"),
        (
            dataclasses.replace(V2, experts=dataclasses.replace(V2.experts, shared=0)),
            "shared is 0",
        ),
        (
            dataclasses.replace(V2, yarn=dataclasses.replace(YARN, mscale_all_dim=0.0)),
            "mscale .0.707. and mscale_all_dim .0.0. must both be set",
        ),
    ],
)
def test_what_the_format_cannot_say_is_refused(config: DecoderConfig, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        to_hf_config(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_parameters": None, "rope_theta": None, "rope_scaling": None}, "rope settings"),
        ({"norm_topk_prob": True}, "norm_topk_prob must be false"),
        ({"topk_method": "noaux_tc"}, "topk_method must be"),
        ({"attention_bias": True}, "attention_bias must be False"),
        ({"num_key_value_heads": 2}, "num_key_value_heads must be 4"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_type must be"),
    ],
)
def test_configs_that_a_decoder_cannot_compute_are_refused(
    change: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        from_hf_config(to_hf_config(V2) | change)
