"""The mapping itself: bitwise both ways, old buffers, messages for wrong tensors and configs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.classifier import DecoderClassifier
from models.counting import PYTHIA, parameter_count
from models.decoder import Decoder, DecoderLM
from models.decoder_config import DecoderConfig, gpt_neox_config, llama_config
from models.hf_config import from_hf_config, to_hf_config
from models.hf_layout import from_hf, to_hf

NEOX = gpt_neox_config(vocab_size=31, width=24, layers=2, heads=3)
LLAMA = llama_config(
    vocab_size=31, width=24, layers=2, heads=6, key_value_heads=2, feed_forward_width=40
)
SHAPES = {
    "neox": NEOX,
    "neox tied": dataclasses.replace(NEOX, tied_embeddings=True),
    "llama": LLAMA,
    "llama tied": dataclasses.replace(LLAMA, tied_embeddings=True),
    "llama biases": dataclasses.replace(LLAMA, has_biases=True),
}


def random_state(config: DecoderConfig, classes: int | None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model: torch.nn.Module = DecoderLM(config, generator)
    if classes is not None:
        model = DecoderClassifier(Decoder(config, generator), classes, generator)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("classes", [None, 5])
def test_mapping_keeps_every_bit_both_ways(config: DecoderConfig, classes: int | None) -> None:
    state = random_state(config, classes)
    back = from_hf(to_hf(state, config), config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert from_hf_config(to_hf_config(config, classes=classes)) == config


def test_neox_query_key_value_is_interleaved_per_head() -> None:
    state = random_state(NEOX, None)
    fused = state["decoder.blocks.1.attention.query_key_value.weight"]
    query, key, value = fused.view(3, 3, 8, 24)
    theirs = to_hf(state, NEOX)["gpt_neox.layers.1.attention.query_key_value.weight"]
    for head in range(3):
        rows = theirs[head * 24 : (head + 1) * 24]
        assert torch.equal(rows, torch.cat([query[head], key[head], value[head]]))


def test_buffers_of_older_files_and_both_names_of_the_output_are_accepted() -> None:
    state = random_state(NEOX, None)
    theirs = to_hf(state, NEOX)
    theirs["lm_head.weight"] = theirs.pop("embed_out.weight")
    theirs["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4)
    theirs["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    theirs["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(3)
    back = from_hf(theirs, NEOX)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_written_tensors_share_no_memory() -> None:
    for config in (NEOX, LLAMA):
        written = to_hf(random_state(config, None), config).values()
        assert len({tensor.untyped_storage().data_ptr() for tensor in written}) == len(written)
        assert all(tensor.is_contiguous() for tensor in written)


@pytest.mark.parametrize("config", [NEOX, LLAMA], ids=["neox", "llama"])
def test_wrong_tensors_are_named(config: DecoderConfig) -> None:
    theirs = to_hf(random_state(config, None), config)
    name = next(name for name in theirs if "layers.1.mlp" in name)
    shape = tuple(theirs[name].shape)
    without = {key: tensor for key, tensor in theirs.items() if key != name}
    with pytest.raises(ValueError, match=f"missing {name}"):
        from_hf(without, config)
    with pytest.raises(ValueError, match=r"unknown model\.layers\.7\.strange"):
        from_hf(theirs | {"model.layers.7.strange": torch.ones(1)}, config)
    with pytest.raises(ValueError, match=f"{name} has shape .* instead of") as error:
        from_hf(theirs | {name: torch.ones(2, 2)}, config)
    assert f"instead of {shape}" in str(error.value)
    with pytest.raises(ValueError, match=r"missing decoder\.embedding\.weight"):
        to_hf({}, config)


def test_tied_file_with_another_output_embedding_is_refused() -> None:
    config = SHAPES["llama tied"]
    theirs = to_hf(random_state(config, None), config)
    embedding = theirs["model.embed_tokens.weight"]
    assert from_hf(theirs | {"lm_head.weight": embedding.clone()}, config)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        from_hf(theirs | {"lm_head.weight": embedding + 1}, config)


def test_older_spelling_of_rotary_parameters_is_read() -> None:
    new, old = to_hf_config(NEOX), to_hf_config(NEOX)
    del new["rotary_pct"], new["rotary_emb_base"]
    del old["rope_parameters"]
    assert from_hf_config(new) == from_hf_config(old) == NEOX
    llama = to_hf_config(dataclasses.replace(LLAMA, rotary_base=5e5))
    del llama["rope_parameters"]
    assert from_hf_config(llama | {"rope_scaling": None}).rotary_base == 5e5


def test_released_pythia_config_is_read() -> None:
    values = {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": 512,
        "initializer_range": 0.02,
        "intermediate_size": 2048,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    }
    assert from_hf_config(values) == PYTHIA["70m"]


def test_released_smollm2_config_is_read() -> None:
    values = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49152,
    }
    config = from_hf_config(values)
    assert (config.rotary_base, config.head_width, config.tied_embeddings) == (1e5, 64, True)
    assert parameter_count(config) == 134_515_008


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type must be one of gpt_neox, llama, deepseek_v2, deepseek_v3, got 'gpt2'",
        ),
        ({"hidden_act": "gelu_new"}, "hidden_act must be 'silu', got 'gelu_new'"),
        ({"hidden_size": None}, "hidden_size must be a whole number, got None"),
        ({"mlp_bias": True}, "mlp_bias must be False, got True"),
        ({"num_attention_heads": 7}, r"hidden_size \(24\) must be a multiple"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_type must be 'default', got 'yarn'",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type must be 'default', got 'linear'",
        ),
    ],
)
def test_configs_that_a_decoder_cannot_compute_are_refused(
    change: dict[str, object], message: str
) -> None:
    values = to_hf_config(LLAMA) | {"head_dim": None} | change
    with pytest.raises(ValueError, match=message):
        from_hf_config(values)


def test_shape_between_the_families_has_no_hugging_face_layout() -> None:
    with pytest.raises(ValueError, match="no Hugging Face model type"):
        to_hf_config(dataclasses.replace(LLAMA, parallel_residual=True))
