"""What the routes of every endpoint that tell of itself answer with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answering(BaseModel):
    """A version of the lineup; its place on the disk is not for everybody."""

    version: str
    percent: float = Field(description="Its share of the requests.")
    about: dict[str, Any] = Field(description="What the model says of itself.")


class _Lineup(BaseModel):
    """The versions of a replica."""

    replica: str
    shadow: str | None = Field(description="The version that gets copies of requests.")
    lineup: str | None = Field(description="Id of the newest lineup that was taken or refused.")


class HealthAnswer(_Lineup):
    """Whether it answers, and with which versions."""

    status: Literal["ok"] = "ok"
    versions: list[Answering]
    refused_lineup: bool = Field(description="Whether the newest lineup could not be loaded.")


class AnsweringFrom(Answering):
    """A version of the lineup, and where it comes from."""

    bundle: str


class ModelAnswer(_Lineup):
    """The versions, and what the newest says of itself, at the top level."""

    model_config = ConfigDict(extra="allow")

    version: str = Field(description="The newest of the lineup.")
    versions: list[AnsweringFrom]
    refused_lineup: str | None = Field(description="Why the newest lineup could not be loaded.")
    last_refusal: str | None = Field(
        description="The same, also when the one before was given back."
    )


class ShadowAnswer(BaseModel):
    """How far the shadow agrees with the versions that answer, in one replica."""

    replica: str
    shadow: str | None
    compared: int
    mean_agreement: float | None
    full_agreement: int = Field(description="Copies with the same answer.")
    failed: int
    dropped: int = Field(description="Copies for which there was no room.")
