"""Requests in OpenAI's format, as far as they are served.

What would change an answer and is not served is refused by name, never passed over in silence;
what only describes the client is accepted and not used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from heliostat.serve.generation.wire import (
    MOST_LOGPROBS,
    MOST_TOKENS,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
)

MOST_CHOICES = 8
MOST_PROMPTS = 128


def _none_as_empty(given: object) -> object:
    return [] if given is None else given


def _prompts(given: object) -> object:
    """A list of prompts, each a text or a list of tokens."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given and all(type(one) is int for one in given):
        return [given]
    is_list = isinstance(given, list) and all(
        isinstance(one, str) or (isinstance(one, list) and all(type(token) is int for token in one))
        for one in given
    )
    if not is_list or not given:
        raise ValueError("expected a text, a list of tokens, or a list of such prompts")
    return given


class StreamOptions(BaseModel):
    """What a stream tells besides."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = Field(False, description="One more object at the end, with the usage.")
    include_obfuscation: bool = Field(False, description="Not used.")


class Common(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="A name of GET /v1/models.")
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="Completions of each prompt.")
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    seed: Seed = None
    stop: Annotated[Stops, BeforeValidator(_none_as_empty)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float = Field(0.0, ge=0.0, le=0.0, description="Not served but for 0.")
    frequency_penalty: float = Field(0.0, ge=0.0, le=0.0, description="Not served but for 0.")
    logit_bias: dict[str, float] | None = Field(None, max_length=0, description="Not served.")
    user: str | None = Field(None, description="Requests of one user get one version of the model.")
    store: bool | None = Field(None, description="Not used: nothing is stored.")
    metadata: dict[str, str] | None = Field(None, description="Not used.")
    safety_identifier: str | None = Field(None, description="Not used.")
    prompt_cache_key: str | None = Field(None, description="Not used: beginnings are recognised.")


class OpenAiCompletion(Common):
    """`POST /v1/completions`."""

    prompt: Annotated[
        list[str | list[int]],
        BeforeValidator(_prompts),
        Field(max_length=MOST_PROMPTS, description="A text, tokens, or several of them."),
    ]
    max_tokens: int | None = Field(16, ge=0, le=MOST_TOKENS, description="New tokens at most.")
    echo: bool = Field(False, description="Tell the prompt too.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=1, description="Not served but for 1.")
    suffix: str | None = Field(None, max_length=0, description="Not served.")


class TextPart(BaseModel):
    """A part of a message; only text is served."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """All of it."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class OpenAiChat(Common):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS, description="New tokens at most.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MOST_TOKENS, description="The newer name of max_tokens."
    )
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: dict[str, Any] | None = Field(None, description="Text alone is served.")
    modalities: list[Literal["text"]] | None = None

    @field_validator("response_format")
    @classmethod
    def text_alone(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Nothing is made to follow a schema."""
        if value is not None and value != {"type": "text"}:
            raise ValueError("only the type text is served")
        return value
