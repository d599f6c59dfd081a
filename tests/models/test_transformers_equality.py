"""Logits equal to those of transformers, with weights going both ways through the mapping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from models.classifier import DecoderClassifier
from models.decoder import Decoder, DecoderLM
from models.decoder_config import DecoderConfig
from models.hf_config import from_hf_config, to_hf_config
from models.hf_layout import from_hf, to_hf

SIZES = {
    "vocab_size": 89,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
NEOX = {
    "parallel": GPTNeoXConfig(**SIZES, rotary_pct=0.5),
    "sequential": GPTNeoXConfig(**SIZES, use_parallel_residual=False, rotary_emb_base=500),
    "tied": GPTNeoXConfig(**SIZES, rotary_pct=1.0, tie_word_embeddings=True),
}
LLAMA = {
    "grouped": LlamaConfig(**SIZES, num_key_value_heads=2, rope_theta=100_000.0),
    "wide heads": LlamaConfig(**SIZES, head_dim=20, attention_bias=True, mlp_bias=True),
    "tied": LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
}
LMS = [
    *(pytest.param(GPTNeoXForCausalLM, c, id=f"neox {name}") for name, c in NEOX.items()),
    *(pytest.param(LlamaForCausalLM, c, id=f"llama {name}") for name, c in LLAMA.items()),
]
CLASSIFIERS = [
    pytest.param(GPTNeoXForSequenceClassification, NEOX["parallel"], id="neox"),
    pytest.param(LlamaForSequenceClassification, LLAMA["grouped"], id="llama"),
]
GENERATOR = torch.Generator().manual_seed(0)


def peer(kind: type[PreTrainedModel], config: GPTNeoXConfig | LlamaConfig) -> PreTrainedModel:
    """A transformers model in which no parameter, biases and norms included, is at its default."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours_from(model: PreTrainedModel) -> tuple[DecoderLM, DecoderConfig]:
    config = from_hf_config(model.config.to_dict())
    lm = DecoderLM(config, GENERATOR)
    lm.load_state_dict(from_hf(model.state_dict(), config))
    return lm, config


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 89, (3, 21), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    mask[1, 15:] = 0
    return ids.masked_fill(mask == 0, 0), mask


@torch.no_grad()
@pytest.mark.parametrize(("kind", "config"), LMS)
def test_logits_equal_transformers(
    kind: type[PreTrainedModel], config: GPTNeoXConfig | LlamaConfig
) -> None:
    theirs = peer(kind, config)
    ours, _ = ours_from(theirs)
    ids, mask = padded_batch()
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    real = mask.bool()
    torch.testing.assert_close(
        ours(ids, attention_mask=mask)[real], expected[real], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize(("kind", "config"), CLASSIFIERS)
def test_classifier_logits_equal_transformers(
    kind: type[PreTrainedModel], config: GPTNeoXConfig | LlamaConfig
) -> None:
    theirs = peer(kind, type(config).from_dict(config.to_dict() | {"num_labels": 7}))
    shape = from_hf_config(theirs.config.to_dict())
    ours = DecoderClassifier(Decoder(shape, GENERATOR), 7, GENERATOR)
    ours.load_state_dict(from_hf(theirs.state_dict(), shape))
    ids, mask = padded_batch()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(ours(ids, attention_mask=mask), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "config"), [*LMS, *CLASSIFIERS])
def test_files_round_trip_through_transformers(
    kind: type[PreTrainedModel], config: GPTNeoXConfig | LlamaConfig, tmp_path: Path
) -> None:
    """What transformers saves we read; what we write transformers loads, with the same logits."""
    theirs = peer(kind, config)
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    shape = from_hf_config(json.loads((folder / "config.json").read_text()))
    written = to_hf(from_hf(saved, shape), shape)
    assert written.keys() == saved.keys()
    assert all(torch.equal(written[name], saved[name]) for name in saved)

    classes = theirs.config.num_labels if "score.weight" in saved else None
    values = to_hf_config(shape, classes=classes) | {"pad_token_id": 0}
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values))
    loaded, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    ids, _ = padded_batch()
    assert torch.equal(loaded(ids).logits, theirs(ids).logits)
