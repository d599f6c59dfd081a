"""Tokenizers of Hugging Face: the bytes of every token, templates, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from served_lm import TEXT, write_checkpoint
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from heliostat.errors import BundleError
from heliostat.serve.generation.hf_codec import HfCodec

SHARED: dict[str, HfCodec] = {}


def byte_level() -> HfCodec:
    return SHARED["byte level"]


def byte_fallback() -> HfCodec:
    return SHARED["byte fallback"]


@pytest.fixture(scope="module", autouse=True)
def codecs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tokenizers")
    SHARED["byte level"] = HfCodec(write_checkpoint(folder / "one"))
    SHARED["byte fallback"] = HfCodec(write_fallback(folder / "two"))


def write_fallback(folder: Path) -> Path:
    """A tokenizer of the Llama 2 kind: spaces as U+2581, unknown characters as bytes."""
    folder.mkdir()
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT[:1], trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [
        one for one in raw["added_tokens"] if not one["content"].startswith("<0")
    ]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7]}))
    return folder


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@given(text=st.text(max_size=30))
def test_the_bytes_of_the_tokens_are_those_of_the_text(kind: str, text: str) -> None:
    if "\u2581" in text and kind == "byte fallback":
        return  # which such tokenizers cannot tell from a space
    codec = SHARED[kind]
    text = text.encode("utf-8", "ignore").decode()
    if any(special in text for special in ("<s>", "</s>", "<unk>", "<|")):
        return
    assert b"".join(codec.token_bytes(one) for one in codec.encode(text)) == text.encode()


def test_special_tokens_are_no_text_and_end_completions() -> None:
    codec = byte_level()
    (end,) = codec.encode("<|im_end|>")
    assert codec.token_bytes(end) == b""
    assert codec.stop_tokens == {end}
    fallback = byte_fallback()
    assert fallback.stop_tokens == {7, 2}
    assert fallback.token_bytes(10**6) == b""


def test_a_template_makes_the_prompt_of_a_conversation() -> None:
    codec = byte_level()
    tokens = codec.chat([{"role": "user", "content": "hello there"}])
    assert tokens == codec.encode(
        "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not byte_fallback().has_chat


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "refuses it"),
        ("{{ undefined_thing.part }}", "refuses it"),
    ],
)
def test_a_template_that_refuses_or_reaches_out_is_an_error(
    tmp_path: Path, template: str, message: str
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        HfCodec(folder).chat([{"role": "user", "content": "hi"}])


def test_a_tokenizer_whose_bytes_are_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        HfCodec(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BundleError, match="neither a byte-level tokenizer nor"):
        HfCodec(tmp_path)
