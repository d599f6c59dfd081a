"""Stage-1 layout, and tokens that nobody can smuggle in."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jobs.corpora.tokenizer import ordinary_encoder
from jobs.support_templates.data.rows import Message
from jobs.support_templates.transcript import transcript


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["my card was declined, please help me"] * 5, trainer)
    return tokenizer


def test_a_case_is_one_tagged_line_for_each_message() -> None:
    messages = [
        Message(0, "customer", "hi, <NAME> here"),
        Message(1, "system", "queue: 2"),
        Message(2, "advocate", "Hello!"),
    ]
    assert transcript(messages) == (
        "<CUSTOMER>: hi, <NAME> here\n<SYSTEM>: queue: 2\n<ADVOCATE>: Hello!"
    )


def test_typed_special_tokens_become_ordinary_text() -> None:
    tokenizer = byte_level_tokenizer()
    text = "before<|endoftext|>after<|padding|>"
    special = {tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|padding|>")}
    assert special & set(tokenizer.encode(text).ids), "the plain tokenizer falls for it"
    (tokens,) = ordinary_encoder(tokenizer)([text])
    assert not special & set(tokens)
    assert tokenizer.decode(tokens) == text


def test_the_encoder_leaves_the_tokenizer_and_its_vocabulary_alone() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=12)
    before = tokenizer.to_str()
    encode = ordinary_encoder(tokenizer)
    assert encode(["<CUSTOMER>: my card was declined", ""])[1] == []
    assert len(encode(["<CUSTOMER>: my card was declined"])[0]) > 3
    assert tokenizer.to_str() == before
    assert not tokenizer.encode_special_tokens
