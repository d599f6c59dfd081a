"""What a user can say about the generation engine: a section of a job's config."""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.errors import ConfigError

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class GenerationConfig:
    """The engine of a language model."""

    precision: str = field(default="fp32", metadata={"choices": PRECISIONS})
    """Number format of weights and cache; the routers of experts stay fp32."""
    context: int | None = None
    """Longest sequence, prompt and completion together; null: what the model was made for."""
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
        if self.context is not None and self.context < 2:
            raise ConfigError(f"context is {self.context}; expected at least 2, or null")

    def within(self, longest: int) -> int:
        """Longest sequence of a model that was made for `longest` tokens."""
        return longest if self.context is None else min(longest, self.context)

    def pages(self, page_tokens: int) -> int:
        """Pages of the cache."""
        return -(-self.cache_tokens // page_tokens)
