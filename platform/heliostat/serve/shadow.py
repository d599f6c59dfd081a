"""What is known of a version that answers nobody: how often it agrees with those that do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShadowReport:
    """Counts over the copies of requests that a shadow got."""

    compared: int = 0
    agreement_sum: float = 0.0
    full_agreement: int = 0
    failed: int = 0
    dropped: int = 0
    """Copies that were not made because the shadow could not keep up."""

    def add(self, agreement: float) -> None:
        """Count a comparison, 0 to 1."""
        self.compared += 1
        self.agreement_sum += agreement
        self.full_agreement += agreement >= 1

    @property
    def mean_agreement(self) -> float | None:
        """None before the first comparison."""
        return self.agreement_sum / self.compared if self.compared else None
