"""The tokenizer of a job: a byte-level BPE that it trains, or the one that a checkpoint brings.

The first two ids of one that is trained here are the end-of-text and the padding token, special
tokens that no text encodes to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.errors import DataError
from heliostat.storage import Location

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Turns texts into token lists, one for each text."""

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
FILE = "tokenizer.json"
MOST_TOKENS = 2**16
END_NAMES = (END_OF_TEXT, "<|im_end|>", "</s>", "<eos>")
PAD_NAMES = (PADDING, "<pad>", "[PAD]")


@dataclass(frozen=True)
class TextCodec:
    """A tokenizer with the two special tokens that training needs."""

    json_text: str
    """The tokenizer in its own JSON format."""
    end_of_text: int
    pad: int | None
    """None: the checkpoint has none, and the classifier pools by mask alone."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.json_text)

    @cached_property
    def encode(self) -> Encode:
        """Encodes texts; nothing that anybody types becomes a special token."""
        return ordinary_encoder(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def fingerprint(self) -> str:
        """Stands for the tokenizer in preparation keys."""
        return sha256(self.json_text.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("json_text", "end_of_text", "pad")}


def ordinary_encoder(tokenizer: Tokenizer) -> Encode:
    """An encoder under which nothing that somebody wrote becomes a special token.

    A tokenizer recognises its special tokens inside text, so a text that contains the letters
    `<|endoftext|>` would end its document, and one that contains the pad token would move the
    position at which a classifier pools. The encoder works on a copy in which those letters are
    ordinary text, and adds no special tokens of its own.
    """
    own = type(tokenizer).from_str(tokenizer.to_str())
    own.encode_special_tokens = True
    own.no_padding()
    own.no_truncation()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encodings = own.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextCodec:
    """A byte-level BPE of `vocab_size` ids, special tokens included."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return codec_of(tokenizer.to_str(), "the tokenizer made here")


def codec_of(json_text: str, where: str) -> TextCodec:
    """Find the special tokens of a tokenizer.

    Raises:
        DataError: it has no end-of-text token, or pads with it, or has more ids than documents
            can hold.
    """
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_str(json_text).get_vocab()
    end = next((vocabulary[name] for name in END_NAMES if name in vocabulary), None)
    pad = next((vocabulary[name] for name in PAD_NAMES if name in vocabulary), None)
    if end is None:
        raise DataError(f"{where} has no end-of-text token: expected one of {', '.join(END_NAMES)}")
    if len(vocabulary) > MOST_TOKENS:
        raise DataError(
            f"{where} has {len(vocabulary):,} tokens: expected at most {MOST_TOKENS:,}, because "
            "documents are stored with 16 bits a token"
        )
    if pad == end:
        raise DataError(f"{where} pads with its end-of-text token {end}: expected another token")
    return TextCodec(json_text=json_text, end_of_text=end, pad=pad)


def load_codec(folder: Path) -> TextCodec:
    """The tokenizer of a checkpoint in Hugging Face layout."""
    path = folder / FILE
    if not path.exists():
        raise DataError(f"{folder} has no {FILE}: a model folder needs its tokenizer")
    return codec_of(path.read_text(encoding="utf-8"), str(path))


def codec_files(codec: TextCodec) -> dict[str, str]:
    """The files in which `load_codec` and Hugging Face find the tokenizer: names and texts."""
    names = {index: text for text, index in codec.tokenizer.get_vocab().items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": names[codec.end_of_text]}
    if codec.pad is not None:
        settings["pad_token"] = names[codec.pad]
    return {FILE: codec.json_text, "tokenizer_config.json": json.dumps(settings, indent=1)}


def write_codec(codec: TextCodec, folder: Location) -> None:
    """Write the tokenizer into a folder."""
    for name, text in codec_files(codec).items():
        (folder / name).write_text(text)
