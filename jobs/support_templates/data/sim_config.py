"""The settings of the simulated support chat.

Only dataclasses live here, so that a config file can refer to them without loading anything heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from heliostat.errors import ConfigError

Pool = Literal["unlabelled", "labelled", "validation", "test"]
POOLS: tuple[Pool, ...] = ("unlabelled", "labelled", "validation", "test")


@dataclass(frozen=True)
class SimConfig:
    """What `support_sim` generates; the same settings give the same cases on every machine."""

    seed: int = 0
    """Seed of every draw: openings, flow, typing errors, personal data."""
    unlabelled_cases: int = 6000
    """Cases whose transcripts feed domain-adaptive pretraining."""
    labelled_cases: int = 1000
    """Cases whose advocate messages may become training labels; about five messages each."""
    validation_cases: int = 100
    """Cases for early stopping, calibration and the choice of settings."""
    test_cases: int = 400
    """Cases for the final evaluation; about five labelled messages each."""
    labelled_openings_share: float = 0.15
    """Share of all openings that only the labelled pool uses, 0 to 1."""
    validation_openings_share: float = 0.05
    """Share of all openings that only the validation pool uses, 0 to 1."""
    test_openings_share: float = 0.15
    """Share of all openings that only the test pool uses, 0 to 1; the rest is unlabelled."""
    personal_share: float = 0.2
    """Share of customer messages that carry personal data, 0 to 1."""
    lower_case_share: float = 0.6
    """Share of customer messages written in lower case, 0 to 1."""
    typo_share: float = 0.03
    """Share of letters that are mistyped in complaints, 0 to 1; texts from a file stay as is."""
    zipf_exponent: float = 0.7
    """Exponent of the law of issue frequencies; 0 makes all issues equally frequent."""
    advocates: int = 40
    """Number of advocates who answer."""
    ends_at: str = "2026-06-30T00:00:00+00:00"
    """End of the simulated period, ISO 8601 with a time zone."""
    span_days: int = 120
    """Length of the simulated period in days."""
    seed_utterances: str | None = None
    """CSV with the columns text,category or JSON list of [text, intent]; null: packaged issues."""

    def __post_init__(self) -> None:
        for name in (f"{pool}_cases" for pool in POOLS):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("personal_share", "lower_case_share", "typo_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")
        held_out = (
            self.labelled_openings_share,
            self.validation_openings_share,
            self.test_openings_share,
        )
        if min(held_out) <= 0 or sum(held_out) >= 1:
            raise ConfigError(
                f"labelled_openings_share {held_out[0]}, validation_openings_share {held_out[1]} "
                f"and test_openings_share {held_out[2]} must be above 0 with a sum below 1, "
                "so that every pool gets openings"
            )
        if self.zipf_exponent < 0:
            raise ConfigError(f"zipf_exponent is {self.zipf_exponent}; expected 0 or more")
        if self.advocates < 1 or self.span_days < 1:
            raise ConfigError(
                f"advocates is {self.advocates} and span_days is {self.span_days}; "
                "both must be at least 1"
            )
        self._check_end()

    def _check_end(self) -> None:
        try:
            is_zoned = datetime.fromisoformat(self.ends_at).tzinfo is not None
        except ValueError:
            is_zoned = False
        if not is_zoned:
            raise ConfigError(
                f"ends_at is {self.ends_at!r}; expected a date and time with a zone "
                "such as 2026-06-30T00:00:00+00:00"
            )

    @property
    def end(self) -> datetime:
        """The end of the simulated period in UTC."""
        return datetime.fromisoformat(self.ends_at).astimezone(UTC)

    @property
    def begin(self) -> datetime:
        """The beginning of the simulated period in UTC."""
        return self.end - timedelta(days=self.span_days)

    def cases(self, pool: Pool) -> int:
        """How many cases a pool has."""
        return {
            "unlabelled": self.unlabelled_cases,
            "labelled": self.labelled_cases,
            "validation": self.validation_cases,
            "test": self.test_cases,
        }[pool]
