"""Requests and answers of the endpoint, as its OpenAPI description shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    field_validator,
)

Id = Annotated[str, Field(min_length=1, max_length=200)]
_TEXT = TypeAdapter(StrictStr)

Moment = Annotated[AwareDatetime, BeforeValidator(_TEXT.validate_python)]
"""A time as text; pydantic would take a number of seconds as well, which RFC 3339 is not."""


class ChatMessage(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["customer", "system", "advocate"] = Field(description="Who wrote it.")
    text: str = Field(max_length=20_000, description="What was written; it is redacted here.")
    sent_at: Moment | None = Field(None, description="When, RFC 3339 with a time zone.")


class SuggestRequest(BaseModel):
    """A conversation that waits for a reply."""

    model_config = ConfigDict(extra="forbid")

    case_id: Id = Field(description="The case; all its requests get one version of the model.")
    advocate_id: Id | None = Field(None, description="The advocate; needed for the holdout.")
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=500,
        description="The conversation, oldest message first; one at least says something.",
        json_schema_extra={
            "contains": {"properties": {"text": {"pattern": r"\S"}}, "required": ["text"]}
        },
    )
    k: StrictInt = Field(5, ge=1, le=20, description="Suggestions at most.")
    min_probability: float = Field(
        0.0,
        strict=True,
        ge=0.0,
        le=1.0,
        description="Suggestions less probable than this are left out.",
    )
    exclude_used: StrictBool = Field(False, description="Leave out what used_template_ids names.")
    used_template_ids: list[Id] = Field(
        default_factory=list, max_length=500, description="Templates sent in this case already."
    )

    @field_validator("messages")
    @classmethod
    def some_text(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        """At least one message says something."""
        if not any(message.text.strip() for message in messages):
            raise ValueError("no message has any text")
        return messages


class Suggestion(BaseModel):
    """One suggested template."""

    template_id: str
    title: str
    probability: float
    rank: int


class ContextUsed(BaseModel):
    """How much of the conversation the model has read."""

    messages_total: int
    messages_used: int
    tokens_used: int
    truncated: bool


class SuggestAnswer(BaseModel):
    """Suggestions, the best first."""

    model_config = ConfigDict(protected_namespaces=())

    suggestion_id: str
    model_version: str
    label_map_version: str
    cohort: Literal["treatment", "holdout"]
    suggestions: list[Suggestion]
    abstained: bool
    abstain_reason: Literal["low_confidence", "holdout", "all_masked"] | None
    context: ContextUsed
    redactions: dict[str, int]
    latency_ms: float


class Feedback(BaseModel):
    """What became of a suggestion."""

    model_config = ConfigDict(extra="forbid")

    suggestion_id: Annotated[str, Field(min_length=1, max_length=64)]
    chosen_template_id: Id | None = Field(None, description="null: the advocate wrote the reply.")
    selection_time_ms: StrictInt = Field(ge=0, le=86_400_000, description="Time the choice took.")
    edited: StrictBool = Field(False, description="Whether it was changed before it was sent.")


class Kept(BaseModel):
    """Feedback was kept."""

    status: Literal["kept"] = "kept"


class LifecycleAnswer(BaseModel):
    """Whether it is time to train again, from the events of the last days."""

    model_version: str
    window_days: int
    selections: int = Field(description="Templates that advocates chose.")
    out_of_map_rate: float | None = Field(description="Share of them outside the label map.")
    top5: float | None = Field(description="Accuracy in the holdout; null: too few selections.")
    top5_at_release: float | None
    reasons: list[str] = Field(description="A sentence for each limit that was crossed.")
    holdout_selections: int
    unknown_suggestions: int = Field(description="Feedback for suggestions that nobody made.")
    new_templates: dict[str, int] = Field(description="Chosen, outside the label map, by volume.")
    should_retrain: bool
