"""Requests and answers of a language model's own routes, as OpenAPI describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heliostat.serve.generation.wire import (
    MOST_LOGPROBS,
    MOST_TOKENS,
    OwnText,
    OwnTokens,
    PlainPrompt,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
)


class CompletionRequest(BaseModel):
    """A prompt to continue."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="A name of GET models; null: whatever answers.")
    prompt: PlainPrompt
    max_tokens: int = Field(256, ge=1, le=MOST_TOKENS, description="New tokens at most.")
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    seed: Seed = None
    stop: Stops = []
    logprobs: int = Field(
        0, ge=0, le=MOST_LOGPROBS, description="Most probable tokens to tell of; 0: none."
    )
    stream: bool = False


class ScoreRequest(BaseModel):
    """A text whose probability is asked for."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    text: OwnText = None
    tokens: OwnTokens = None

    @model_validator(mode="after")
    def one_of_two(self) -> ScoreRequest:
        """Text or tokens."""
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give text or tokens, one of them")
        return self


class TokenScore(BaseModel):
    """A token and the natural log-probability of it and of others in its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class CompletionChoice(BaseModel):
    """A completion."""

    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length", "cancelled"] | None
    logprobs: list[TokenScore] | None


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int


class TimingMs(BaseModel):
    """Where the time went, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms_per_token: float


class CacheUse(BaseModel):
    """What the request took of the cache."""

    bytes_per_token: int
    tokens: int
    reused_tokens: int


class CompletionAnswer(BaseModel):
    """A completion; in a stream one such object for each token, and one more at the end with what
    is null before."""

    id: str
    model: str
    version: str
    choices: list[CompletionChoice]
    usage: Usage | None
    timing: TimingMs | None
    cache: CacheUse | None


class ScoreAnswer(BaseModel):
    """How probable a text is; its first token has no probability."""

    model: str
    version: str
    loss_nats: float | None
    """Mean over the tokens that have one; null for a single token."""
    token_logprobs: list[float]
    n_tokens: int
