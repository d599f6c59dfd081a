"""Requests and answers of the endpoint, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heliostat.serve.generation.wire import (
    OwnText,
    OwnTokens,
    Seed,
    Stops,
    Temperature,
    TopP,
)
from models.positions import LogN, PositionPlan

MOST_NEW_TOKENS = 4096
MOST_SCHEMES = 32


class SchemeRequest(BaseModel):
    """How positions are assigned."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(description="rope, pi, ntk, yarn, dca, rerope and so on.")] = "rope"
    log_n: Annotated[
        LogN | None, Field(description="Scaling of queries; null: as in training.")
    ] = None
    window: Annotated[int | None, Field(description="Tokens inside which positions are exact.")] = (
        None
    )
    k: Annotated[
        float | None, Field(description="Expansion of pi, ntk, yarn; interval of leaky.")
    ] = None
    group: Annotated[
        int | None, Field(description="Tokens that share a position: self_extend.")
    ] = None
    chunk: Annotated[int | None, Field(description="Largest position of dca.")] = None
    local: Annotated[
        int | None, Field(description="Tokens before a chunk with exact distances: dca.")
    ] = None
    beta: Annotated[float | None, Field(description="Exponent of ntk_mixed.")] = None


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="A name of GET models; null: whatever answers.")
    text: OwnText = None
    tokens: OwnTokens = None
    force: bool = Field(False, description="Accept a log_n that contradicts the training.")
    strict: bool = Field(False, description="Refuse relative positions never seen in training.")

    @model_validator(mode="after")
    def one_of_two(self) -> _Given:
        """Text or tokens."""
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give text or tokens, one of them")
        return self

    @property
    def given(self) -> str | list[int]:
        """Whichever was given."""
        return self.text if self.text is not None else self.tokens or []

    @property
    def field(self) -> str:
        """Its name."""
        return "text" if self.text is not None else "tokens"


class ScoreRequest(_Given):
    """A text to be read under a scheme."""

    scheme: SchemeRequest = SchemeRequest()
    last: int | None = Field(None, ge=1, description="Score the last so many tokens; null: all.")


class CompareRequest(_Given):
    """A text to be read under several schemes."""

    schemes: list[SchemeRequest] = Field(min_length=1, max_length=MOST_SCHEMES)
    last: int | None = Field(None, ge=1)


class GenerateRequest(_Given):
    """A text to be continued under a scheme."""

    scheme: SchemeRequest = SchemeRequest()
    max_new_tokens: int = Field(256, ge=1, le=MOST_NEW_TOKENS)
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    seed: Seed = None
    stop: Stops = []
    stream: bool = False


class ResolvedScheme(BaseModel):
    """A scheme with everything decided."""

    name: str
    log_n: LogN
    window: int | None
    k: float | None
    group: int | None
    chunk: int | None
    local: int | None
    beta: float | None

    @classmethod
    def of(cls, plan: PositionPlan) -> ResolvedScheme:
        """What a plan decided."""
        scheme = plan.scheme
        takes_chunk = scheme.name == "dca"
        takes_k = scheme.name.startswith(("pi", "ntk", "yarn", "leaky"))
        return cls(
            name=scheme.name,
            log_n=scheme.log_n,
            window=scheme.window,
            k=plan.interval if takes_k else None,
            group=scheme.group,
            chunk=plan.chunk if takes_chunk else None,
            local=plan.local if takes_chunk else None,
            beta=scheme.beta if scheme.name == "ntk_mixed" else None,
        )


class SchemeScore(BaseModel):
    """How a text reads under a scheme."""

    scheme: ResolvedScheme
    train_length: int
    max_relative_position: float
    extrapolating: bool
    window_not_recommended: bool
    loss_nats: float
    accuracy: float


class ScoreAnswer(SchemeScore):
    """A score, token by token; the first token of the text has none."""

    request_id: str
    model: str
    version: str
    n_tokens: int
    token_logprobs: list[float]
    elapsed_ms: float


class CompareAnswer(BaseModel):
    """One row for each scheme, in the order that they were asked for."""

    request_id: str
    model: str
    version: str
    n_tokens: int
    rows: list[SchemeScore]
    elapsed_ms: float


class GenerateAnswer(BaseModel):
    """A completion; in a stream one such object for each token, and one more at the end."""

    request_id: str
    model: str
    version: str
    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length", "cancelled"] | None
    usage: dict[str, int] | None
    timing: dict[str, float] | None
    cache_bytes: int | None
    scheme: ResolvedScheme
    extrapolating: bool
    window_not_recommended: bool


def scheme_values(asked: SchemeRequest) -> dict[str, Any]:
    """The fields of a `PositionScheme` that were given."""
    values = asked.model_dump(exclude_none=True)
    if "k" in values:
        values["interval"] = values.pop("k")
    return values
