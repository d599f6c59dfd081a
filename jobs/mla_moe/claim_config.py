"""The experiment behind the claim of mla_moe, as a section of the config."""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.errors import ConfigError


@dataclass(frozen=True)
class ClaimConfig:
    """What is repeated, and how often."""

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """One whole repetition for each; seed 0 is what the method was developed with."""
    curve_seeds: int = 1
    """Of these, how many also train every point of the curve of loss against cache."""
    latent_widths: list[int] = field(default_factory=lambda: [48, 64, 96])
    """d_c of the curve."""
    rotary_widths: list[int] = field(default_factory=lambda: [16, 32, 48])
    """d_R of the curve."""
    alpha_expert: float = 0.01
    """alpha1 of the arms that are balanced by a loss."""
    small_alpha_expert: float = 1e-4
    """alpha1 of the arm that has the bias as well."""
    shard_steps: int = 50
    """Steps over which sharded trainings must have the loss of one process."""
    parallel: int = 2
    """Trainings at the same time."""
    measured: list[str] = field(default_factory=list)
    """Files `measurements.json` of earlier runs; what they hold is not measured again."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ConfigError("seeds is empty: the claim is a mean over at least one seed")
        if not 0 <= self.curve_seeds <= len(self.seeds):
            raise ConfigError(
                f"curve_seeds is {self.curve_seeds}, but there are {len(self.seeds)} seeds"
            )
