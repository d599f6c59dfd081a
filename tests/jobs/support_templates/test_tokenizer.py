"""The tokenizer: nothing is lost, nothing typed is special, and a bad one is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.corpora.tokenizer import (
    END_OF_TEXT,
    PADDING,
    codec_of,
    load_codec,
    train_tokenizer,
    write_codec,
)

CORPUS = ["The payment was sent, but it never arrived at the bank."] * 3 + [
    "Returns the number of seconds since the beginning of the period."
]
CODEC = train_tokenizer(CORPUS, 300)


def bpe_json(*special: str) -> str:
    """A byte-level tokenizer with these special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def test_the_vocabulary_has_the_size_asked_for_and_starts_with_the_special_tokens() -> None:
    assert CODEC.vocab_size == 300
    assert (CODEC.end_of_text, CODEC.pad) == (0, 1)


@given(st.text())
def test_any_text_comes_back_and_holds_no_special_token(text: str) -> None:
    (ids,) = CODEC.encode([text])
    assert CODEC.tokenizer.decode(ids, skip_special_tokens=False) == text
    assert not {CODEC.end_of_text, CODEC.pad} & set(ids)


@pytest.mark.parametrize("name", [END_OF_TEXT, PADDING])
def test_a_typed_special_token_is_ordinary_text(name: str) -> None:
    (ids,) = CODEC.encode([f"before {name} after"])
    assert not {CODEC.end_of_text, CODEC.pad} & set(ids)
    assert CODEC.tokenizer.decode(ids) == f"before {name} after"


def test_training_again_gives_the_same_tokenizer() -> None:
    again = train_tokenizer(CORPUS, 300)
    assert again == CODEC
    assert again.fingerprint == CODEC.fingerprint
    assert train_tokenizer(CORPUS, 290).fingerprint != CODEC.fingerprint


def test_the_tokenizer_survives_the_way_to_a_worker() -> None:
    texts = ["it never arrived", "<CUSTOMER>: hi"]
    CODEC.encode(texts)
    there = pickle.loads(pickle.dumps(CODEC))
    assert there.encode(texts) == CODEC.encode(texts)
    assert (there.end_of_text, there.pad) == (CODEC.end_of_text, CODEC.pad)


def test_a_written_tokenizer_is_read_back_by_us_and_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_codec(CODEC, Location.of(tmp_path))
    assert load_codec(tmp_path) == CODEC
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "the payment never arrived"
    assert theirs(text, add_special_tokens=False)["input_ids"] == CODEC.encode([text])[0]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (CODEC.end_of_text, CODEC.pad)


def test_a_checkpoint_tokenizer_is_known_by_its_own_names() -> None:
    smollm = codec_of(bpe_json("<|im_start|>", "<|im_end|>", "<pad>"), "somewhere")
    assert (smollm.end_of_text, smollm.pad) == (1, 2)
    pythia = codec_of(bpe_json("<|endoftext|>", "<|padding|>"), "somewhere")
    assert (pythia.end_of_text, pythia.pad) == (0, 1)
    assert codec_of(bpe_json("</s>"), "somewhere").pad is None


def test_a_tokenizer_without_end_of_text_is_refused_with_the_place_and_the_names() -> None:
    with pytest.raises(DataError) as refused:
        codec_of(bpe_json("<pad>"), "folder/tokenizer.json")
    message = str(refused.value)
    assert message.startswith("folder/tokenizer.json has no end-of-text token")
    assert END_OF_TEXT in message


def test_a_tokenizer_that_pads_with_its_end_of_text_is_refused() -> None:
    document = json.loads(bpe_json("<|endoftext|>", "<|padding|>"))
    merged = {**document["model"]["vocab"], "<|padding|>": 0}
    document["model"]["vocab"] = merged
    document["added_tokens"] = [
        {**token, "id": 0} if token["content"] == "<|padding|>" else token
        for token in document["added_tokens"]
    ]
    with pytest.raises(DataError, match="pads with its end-of-text token"):
        codec_of(json.dumps(document), "here")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json: a model folder needs"):
        load_codec(tmp_path)


def test_a_vocabulary_that_sixteen_bits_cannot_number_is_refused() -> None:
    document = json.loads(bpe_json("<|endoftext|>", "<|padding|>"))
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"token{number}": number for number in range(len(vocabulary), 2**16 + 1)}
    with pytest.raises(DataError, match=r"here has 65,537 tokens: expected at most 65,536"):
        codec_of(json.dumps(document), "here")
