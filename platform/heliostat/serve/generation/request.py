"""What a client asks for, and what it is told, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """0: the most probable token."""
    top_p: float = 1.0
    """Only the most probable tokens that have this much probability together."""
    top_k: int = 0
    """Only this many of the most probable tokens; 0: all."""
    seed: int | None = None
    """Same seed, same completion; None: another one each time."""


@dataclass(frozen=True)
class Request:
    """A prompt to be continued, or to be scored, or both."""

    prompt: tuple[int, ...]
    """Tokens, at least one."""
    max_tokens: int
    """New tokens at most; 0 with `score_prompt`."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """The completion ends before the first of these."""
    stop_tokens: frozenset[int] = frozenset()
    """The completion ends with the first of these."""
    logprobs: int | None = None
    """None: no log-probabilities; n: that of the token, and the n most probable ones."""
    score_prompt: bool = False
    """Log-probabilities of the prompt's tokens too."""


@dataclass(frozen=True)
class TokenLogprob:
    """The natural log-probability of a token, before temperature and cuts."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens in its place."""


@dataclass(frozen=True)
class Produced:
    """A new token."""

    token: int
    text: str
    """What is certain of the text by now and was not told before; may be empty."""
    logprob: TokenLogprob | None


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of the prompt's tokens but the first, in order, a part at a time."""

    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Timing:
    """Where the time went."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Finished:
    """The end; nothing follows."""

    reason: FinishReason
    text: str
    """What was held back and is text after all."""
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int
    """Tokens of the prompt whose cache was there already."""
    timing: Timing
    error: str | None = None
    """Why, where the reason is `error`."""


Event = Produced | Scored | Finished
