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
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.support_templates.data.rows import Role
from jobs.support_templates.tokenizer import TextCodec
from jobs.support_templates.transcript import MESSAGE_SEPARATOR, ROLE_TAGS

Tokens = npt.NDArray[np.uint16]

TOKENS = pa.list_(pa.field("item", pa.uint16(), nullable=False))


class TranscriptTokeniser:
    """Tokenises transcripts, and remembers the tokens of every message that it has seen."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._is_joined = cuts_at_newlines(codec.json_text)
        self._known: dict[str, Tokens] = {}

    def tokens(self, messages: pa.ListArray) -> pa.ListArray:
        """One list of tokens for each list of messages (structs with `role` and `text`)."""
        fields = messages.flatten()
        roles: list[Role] = fields.field("role").to_pylist()
        texts: list[str] = fields.field("text").to_pylist()
        tagged = [f"{ROLE_TAGS[role]}: {text}" for role, text in zip(roles, texts, strict=True)]
        ends = accumulate(messages.value_lengths().to_pylist(), initial=0)
        cases = [tagged[start:end] for start, end in pairwise(ends)]
        if not self._is_joined:
            whole = self._codec.encode([MESSAGE_SEPARATOR.join(case) for case in cases])
            return pa.array(whole, TOKENS)
        self._learn([MESSAGE_SEPARATOR, *tagged])
        return _lists([self._join(case) for case in cases])

    def _learn(self, texts: Sequence[str]) -> None:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        for text, ids in zip(new, self._codec.encode(new), strict=True):
            # Arrow refuses an id that 16 bits cannot hold; numpy does not on every path.
            self._known[text] = pa.array(ids, pa.uint16()).to_numpy()

    def _join(self, case: Sequence[str]) -> Tokens:
        newline = self._known[MESSAGE_SEPARATOR]
        parts = [part for text in case for part in (newline, self._known[text])]
        return np.concatenate(parts[1:]) if parts else np.empty(0, np.uint16)


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


def _lists(documents: Sequence[Tokens]) -> pa.ListArray:
    ends = np.cumsum([0, *map(len, documents)], dtype=np.int32)
    values = np.concatenate([np.empty(0, np.uint16), *documents])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values), type=TOKENS)
