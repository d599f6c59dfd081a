"""The codec of models that read bytes: token b is byte b, and tokens from 256 on are no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ByteCodec:
    """UTF-8 bytes as tokens."""

    stop_tokens: frozenset[int] = frozenset()
    """Tokens that end a completion; a model of plain bytes has none."""

    @property
    def has_chat(self) -> bool:
        """Never."""
        return False

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        """The byte of a token."""
        return bytes([token]) if token < 256 else b""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Refused: nothing says how such a model is talked to."""
        raise ValueError("this model has no chat template")
