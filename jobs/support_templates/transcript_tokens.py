"""Transcripts as tokens, with every distinct message tokenised once.

A chat repeats itself, so it pays to tokenise messages and join their tokens. That gives the tokens
of the whole transcript only if the tokenizer never looks across the newline between two messages.
`cuts_at_newlines` tells where this is certain. Byte-level BPE in GPT-2's manner (Radford et al.
2019; GPT-NeoX, SmolLM2 and our own tokenizer) first cuts the text by the pattern

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

and merges within the pieces only. A message begins with `<`, never with white space. So of the
white space that ends a message and the newline after it, `\\s+(?!\\S)` takes all but the newline,
exactly as it does at the end of the text, and the newline is a piece of its own. With any other
tokenizer, whole transcripts are tokenised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.corpora.tokenizer import TextCodec
from jobs.support_templates.data.rows import ROLES
from jobs.support_templates.transcript import MESSAGE_SEPARATOR, ROLE_TAGS

Tokens = npt.NDArray[np.uint16]
Indices = npt.NDArray[np.int64]

TOKENS = pa.list_(pa.field("item", pa.uint16(), nullable=False))
_TAGS = pa.array([f"{ROLE_TAGS[role]}: " for role in ROLES])


class TranscriptTokeniser:
    """Tokenises transcripts, and remembers the tokens of every message that it has seen."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._is_joined = cuts_at_newlines(codec.json_text)
        self._known: dict[str, Tokens] = {}

    def tokens(self, messages: pa.ListArray) -> pa.ListArray:
        """One list of tokens for each list of messages (structs with `role` and `text`)."""
        fields = messages.flatten()
        roles = pc.index_in(fields.field("role"), pa.array(ROLES))
        tagged = pc.binary_join_element_wise(_TAGS.take(roles), fields.field("text"), "")
        sizes = pc.list_value_length(messages).to_numpy()
        ends = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        if not self._is_joined:
            texts = tagged.to_pylist()
            cases = [MESSAGE_SEPARATOR.join(texts[start:end]) for start, end in pairwise(ends)]
            return pa.array(self._codec.encode(cases), TOKENS)
        distinct = tagged.dictionary_encode()
        return self._join(distinct.dictionary.to_pylist(), distinct.indices.to_numpy(), ends)

    def _join(self, texts: Sequence[str], which: Indices, ends: Indices) -> pa.ListArray:
        """Put the tokens of messages together, a newline between the messages of a case.

        Args:
            texts: the distinct messages.
            which: [messages], the place of each in `texts`.
            ends: [cases + 1], case i has the messages from `ends[i]` up to `ends[i + 1]`.
        """
        parts = self._tokens_of([*texts, MESSAGE_SEPARATOR])
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        newline = len(texts)
        # Before each message its newline, and then away with those of the first messages.
        pairs = np.stack((np.full(len(which), newline), which), axis=1)
        is_taken = np.ones(pairs.shape, bool)
        is_taken[ends[:-1][ends[:-1] < ends[1:]], 0] = False
        picked = _lists(parts, lengths).take(pa.array(pairs[is_taken]))
        after = np.concatenate(([0], np.cumsum((lengths[pairs] * is_taken).sum(axis=1))))
        return pa.ListArray.from_arrays(
            pa.array(after[ends], pa.int32()), picked.flatten(), type=TOKENS
        )

    def _tokens_of(self, texts: Sequence[str]) -> list[Tokens]:
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        encoded = self._codec.encode(new)
        # Arrow refuses an id that 16 bits cannot hold; numpy does not on every path.
        flat = pa.array(list(chain.from_iterable(encoded)), pa.uint16()).to_numpy()
        start = 0
        for text, ids in zip(new, encoded, strict=True):
            known[text] = flat[start : start + len(ids)]
            start += len(ids)
        return [known[text] for text in texts]


def cuts_at_newlines(tokenizer_json: str) -> bool:
    """Whether it is certain that no token and no merge spans the newline between two messages."""
    tokenizer: dict[str, Any] = json.loads(tokenizer_json)
    normaliser = tokenizer.get("normalizer") or {"type": "NFC"}
    plain = [token for token in tokenizer.get("added_tokens", []) if not token["special"]]
    return (
        tokenizer["model"].get("type") == "BPE"
        and normaliser["type"] == "NFC"
        and _is_byte_level(tokenizer.get("pre_tokenizer"))
        and not any(_spans_newlines(token) for token in plain)
    )


def _is_byte_level(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        # Cutting out digits first leaves the pieces on both sides of a newline as they are.
        *before, last = pre_tokenizer["pretokenizers"]
        return _is_byte_level(last) and all(step["type"] == "Digits" for step in before)
    is_usual = pre_tokenizer.get("use_regex", True) and not pre_tokenizer.get("add_prefix_space")
    return bool(pre_tokenizer["type"] == "ByteLevel" and is_usual)


def _spans_newlines(token: Mapping[str, Any]) -> bool:
    return "\n" in token["content"] or token["lstrip"] or token["rstrip"]


def _lists(parts: Sequence[Tokens], lengths: Indices) -> pa.ListArray:
    ends = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(np.concatenate(parts)), type=TOKENS)
