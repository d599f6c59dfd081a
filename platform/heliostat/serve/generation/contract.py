"""What a job gives so that its language model can be served by the engine.

The platform knows no model: it decides which tokens are computed next and in which pages they are
kept, and a `LanguageModel` computes them. Both protocols are structural; a job needs no base class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Work:
    """One sequence's part of a step."""

    tokens: Sequence[int]
    """New tokens, at least 1."""
    past: int
    """Tokens before them that are in the cache."""
    pages: Sequence[int]
    """Page i of the sequence holds positions i * page_tokens and on; enough for the new tokens."""
    slot: int
    """A number below the model's `sequences` that is this sequence's own while it runs: for what is
    kept once for a sequence and not for each token."""
    is_resumed: bool
    """First step of a sequence whose cached tokens were computed for another one with the same
    beginning: nothing is in its slot yet."""
    every_row: bool
    """Logits of all new tokens are wanted, not of the last alone."""


class LanguageModel(Protocol):
    """A causal language model with a pool of pages; only ever called from one thread at a time."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...

    @property
    def context(self) -> int:
        """Longest sequence, prompt and completion together."""
        ...

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        ...

    @property
    def pages(self) -> int:
        """Pages of the pool, numbered from 0."""
        ...

    @property
    def sequences(self) -> int:
        """Sequences that may be under way at the same time."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """What a token takes of the pool, as the tensors have it."""
        ...

    @property
    def bytes_per_sequence(self) -> int:
        """What a sequence takes besides, however long it is: the rings."""
        ...

    def forward(self, work: Sequence[Work]) -> torch.Tensor:
        """Compute a step and keep its tokens.

        Returns:
            float32 logits [R, V]: for each part of the work one row, or one for each new token
            where `every_row`, in order.
        """
        ...

    def clear(self, pages: Sequence[int]) -> None:
        """Overwrite pages in which something not finite may be."""
        ...


class Codec(Protocol):
    """Text to tokens and back."""

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end a completion."""
        ...

    @property
    def has_chat(self) -> bool:
        """Whether there is a template for conversations."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for, perhaps a part of a character; none for a token
        that is no text."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation up to where the assistant answers.

        Raises:
            ValueError: the template refuses it; says why.
        """
        ...
