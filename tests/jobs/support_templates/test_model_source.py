"""Where decoders come from: folders that transformers wrote, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from heliostat.errors import ConfigError, DataError
from heliostat.storage import Location
from heliostat.train.weights import load_weights
from jobs.corpora.tokenizer import train_tokenizer, write_codec
from jobs.support_templates.model_source import open_pretrained
from models.decoder import DecoderLM

VOCABULARY = 300
CODEC = train_tokenizer(["the payment never arrived at the bank of the customer"] * 4, 280)


def gpt_neox() -> Any:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    return GPTNeoXForCausalLM(config)


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def saved(model: Any, folder: Path, **options: object) -> Path:
    """A model folder with its tokenizer."""
    model.eval().save_pretrained(folder, **options)
    write_codec(CODEC, Location.of(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Location:
    return Location.of(tmp_path) / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small GPT-NeoX model."""
    torch.manual_seed(0)
    return saved(gpt_neox(), tmp_path / "model")


@pytest.mark.parametrize("build", [gpt_neox, llama])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_folder_gives_the_logits_that_transformers_gives(
    build: Callable[[], Any], shard: str, tmp_path: Path, cache: Location
) -> None:
    torch.manual_seed(0)
    theirs = build()
    found = open_pretrained(str(saved(theirs, tmp_path / "model", max_shard_size=shard)), cache)
    ours = DecoderLM(found.decoder, torch.Generator().manual_seed(1)).eval()
    load_weights(ours, found.weights)
    ids = torch.randint(0, VOCABULARY, (3, 40))
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs.eval()(ids).logits, atol=1e-5, rtol=1e-5)
    assert found.codec == CODEC
    assert found.decoder.vocab_size == VOCABULARY


def test_half_precision_is_converted_to_float32(tmp_path: Path, cache: Location) -> None:
    found = open_pretrained(str(saved(gpt_neox().half(), tmp_path / "model")), cache)
    model = DecoderLM(found.decoder, torch.Generator())
    load_weights(model, found.weights)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_conversion_is_done_once_and_again_when_the_weights_change(
    folder: Path, cache: Location
) -> None:
    first = open_pretrained(str(folder), cache).weights
    stamp = (first.local_path / "model.safetensors").stat().st_mtime_ns
    assert open_pretrained(str(folder), cache).weights == first
    assert (first.local_path / "model.safetensors").stat().st_mtime_ns == stamp
    torch.manual_seed(1)
    gpt_neox().save_pretrained(folder)
    assert open_pretrained(str(folder), cache).weights != first


def test_pickled_weights_alone_are_refused_and_not_loaded(folder: Path, cache: Location) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch never'\ntR.")
    with pytest.raises(DataError, match=r"holds no \*\.safetensors file; .* are refused"):
        open_pretrained(str(folder), cache)


def test_fewer_embeddings_than_tokens_are_refused(folder: Path, cache: Location) -> None:
    words = [f"{first}{second}{first}{second}" for first in "abcdefgh" for second in "uvwxyz"]
    larger = train_tokenizer([" ".join(words)] * 3, 320)
    write_codec(larger, Location.of(folder))
    assert larger.vocab_size > VOCABULARY
    with pytest.raises(DataError) as refused:
        open_pretrained(str(folder), cache)
    assert f"embeddings for {VOCABULARY} tokens" in str(refused.value)
    assert f"gives {larger.vocab_size}" in str(refused.value)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, cache: Location) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        open_pretrained(str(folder), cache)


def test_a_folder_without_a_config_is_refused(folder: Path, cache: Location) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"has no config\.json: expected a model in Hugging Face"):
        open_pretrained(str(folder), cache)


def test_another_architecture_is_refused_by_name(folder: Path, cache: Location) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "t5"}))
    with pytest.raises(DataError, match=r"not supported.*t5"):
        open_pretrained(str(folder), cache)


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path, cache: Location) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(DataError, match="missing"):
        open_pretrained(str(folder), cache)
    assert not cache.exists()


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/nowhere", "nowhere"])
def test_a_missing_folder_is_one_clear_sentence(source: str, cache: Location) -> None:
    with pytest.raises(ConfigError) as refused:
        open_pretrained(source, cache)
    message = str(refused.value)
    assert message.startswith(f"model.source is {source!r}: there is no such folder")
    assert "EleutherAI/pythia-410m" in message
    assert "\n" not in message


def test_a_package_that_is_not_installed_says_how_to_install_it(cache: Location) -> None:
    with pytest.raises(ConfigError, match="no package no_such_model is installed: pip install"):
        open_pretrained("package:no_such_model", cache)
