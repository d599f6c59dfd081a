"""What a user can say about the generation engine: a section of a job's config."""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.errors import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """The engine of a language model."""

    cache_tokens: int = 16_384
    """Tokens that the cache has room for, over all requests."""
    sequences: int = 16
    """Requests that are under way at the same time."""
    prefill_chunk: int = 128
    """Tokens of prompts that are computed in a step, beside one token of each request that
    generates; smaller is smoother, larger is faster."""
    queue: int = 64
    """Requests that may wait to be admitted; one more is answered with 429, or 503 where the cache
    is full."""
    prefix_reuse: bool = True
    """Whether what was computed for the beginning of a prompt is used again."""
    variants: int = 4
    """Engines of one model that may exist, where it can be run in several ways; the longest unused
    gives way."""

    def __post_init__(self) -> None:
        for name in ("cache_tokens", "sequences", "prefill_chunk", "queue", "variants"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")

    def pages(self, page_tokens: int) -> int:
        """Pages of the cache."""
        return -(-self.cache_tokens // page_tokens)
