"""A language model with its pool of pages, as a generation engine wants it.

Binds a `CachedLM` of any kind to a `PagedCache`: the engine names sequences, tokens and pages, and
gets logits. What the engine hands over is read by name, so this module knows no engine.

Shapes: N new tokens of all sequences, R rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from models.cache import CachedLM
from models.paged_cache import PAGE_TOKENS, PagedCache, PagedSequence


class SequenceWork(Protocol):
    """One sequence's part of a step."""

    @property
    def tokens(self) -> Sequence[int]:
        """Its new tokens."""
        ...

    @property
    def past(self) -> int:
        """Its cached tokens."""
        ...

    @property
    def pages(self) -> Sequence[int]:
        """Its pages."""
        ...

    @property
    def slot(self) -> int:
        """Its place in the rings."""
        ...

    @property
    def is_resumed(self) -> bool:
        """Whether its cached tokens are another one's, so that its rings are stale."""
        ...

    @property
    def every_row(self) -> bool:
        """Whether logits of all its new tokens are wanted."""
        ...


class PagedLM:
    """A model that computes steps of many sequences.

    Args:
        model: on its device and in its precision, not to be trained any more.
        vocab_size: V.
        context: longest sequence.
        pages: of the pool.
        sequences: how many may be under way, for the rings.
        dtype: of the cache.
        device: of model and cache.
    """

    page_tokens = PAGE_TOKENS

    def __init__(
        self,
        model: CachedLM,
        *,
        vocab_size: int,
        context: int,
        pages: int,
        sequences: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.vocab_size, self.context = model, vocab_size, context
        self.pages, self.sequences = pages, sequences
        self.cache = PagedCache(
            model.cache_layouts(), pages=pages, sequences=sequences, dtype=dtype, device=device
        )

    @property
    def bytes_per_token(self) -> int:
        """What a token takes of the cache over all layers."""
        return self.cache.bytes_per_token

    @property
    def bytes_per_sequence(self) -> int:
        """What a sequence takes of it besides: its rings."""
        return self.cache.ring_bytes_per_sequence

    @torch.inference_mode()
    def forward(self, work: Sequence[SequenceWork]) -> torch.Tensor:
        """Compute a step: float32 logits [R, V] on the CPU, the last row of each or every row."""
        step = self.cache.step(
            [
                PagedSequence(one.pages, one.past, len(one.tokens), one.slot, one.is_resumed)
                for one in work
            ]
        )
        rows: list[int] = []
        for one, last in zip(work, step.last_rows, strict=True):
            rows += range(last - len(one.tokens) + 1 if one.every_row else last, last + 1)
        tokens = [token for one in work for token in one.tokens]
        ids_N = torch.tensor(tokens, device=self.cache.device)
        logits_RV = self.model.cached(ids_N, step, rows)
        return logits_RV.float().cpu()

    @torch.inference_mode()
    def clear(self, pages: Sequence[int]) -> None:
        """Overwrite pages with zeros."""
        self.cache.clear(pages)
