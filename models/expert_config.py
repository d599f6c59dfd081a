"""The shape and the routing of a mixture of experts, as data; symbols of the DeepSeek reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GateKind = Literal["softmax", "sigmoid"]
GATES: tuple[GateKind, ...] = ("softmax", "sigmoid")
LOWEST_CAPACITY = 0.1
"""A capacity factor below it would drop nearly everything: a mistake, not a setting."""


@dataclass(frozen=True)
class ExpertsConfig:
    """Shared and routed experts in place of a feed-forward layer (arXiv 2401.06066, 2405.04434).

    Experts are SwiGLU layers of one width, without biases.
    """

    routed: int
    """N_r: routed experts of a layer."""
    shared: int
    """N_s: experts that every token goes through; computed as one of width N_s f. May be 0."""
    per_token: int
    """K: routed experts of a token."""
    width: int
    """f: width inside one expert."""
    dense_layers: int = 0
    """Leading layers that keep a plain feed-forward layer."""
    groups: int = 1
    """D: contiguous groups of experts, each meant for one device; divides N_r."""
    groups_per_token: int = 1
    """M: groups that the experts of a token may lie in."""
    gate: GateKind = "softmax"
    """`softmax`: affinities softmax(z), a group counts with its best expert (V2); `sigmoid`:
    affinities sigmoid(z), chosen by affinity plus a bias, a group counts with its best two (V3)."""
    normalised: bool = False
    """Whether the gates of the chosen experts are divided by their sum."""
    scale: float = 1.0
    """rho: factor of the gates."""
    capacity_factor: float | None = None
    """Training only: assignments that a group takes, by its fair share; null: all of them."""
    exempt_share: float = 0.1
    """Share of the sequences, chosen by a hash of their ids, whose tokens are never dropped."""

    def __post_init__(self) -> None:
        for name in ("routed", "per_token", "width", "groups", "groups_per_token"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("shared", "dense_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if self.gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}, got {self.gate!r}.")
        if self.routed % self.groups:
            raise ValueError(
                f"groups ({self.groups}) must divide routed ({self.routed}): every group holds "
                "as many experts."
            )
        if self.groups_per_token > self.groups:
            raise ValueError(
                f"groups_per_token ({self.groups_per_token}) must not exceed groups "
                f"({self.groups})."
            )
        reachable = self.groups_per_token * self.group_size
        if self.per_token > reachable:
            raise ValueError(
                f"per_token ({self.per_token}) must not exceed the {reachable} experts of "
                f"groups_per_token = {self.groups_per_token} groups."
            )
        if self.gate == "sigmoid" and self.group_size < 2:
            raise ValueError(
                f"gate sigmoid ranks a group by its best two experts, but groups = {self.groups} "
                f"of routed = {self.routed} leave {self.group_size} in each."
            )
        if self.capacity_factor is not None and self.capacity_factor < LOWEST_CAPACITY:
            raise ValueError(
                f"capacity_factor must be null or at least {LOWEST_CAPACITY}, got "
                f"{self.capacity_factor}."
            )
        if not 0.0 <= self.exempt_share <= 1.0:
            raise ValueError(f"exempt_share must be in [0, 1], got {self.exempt_share}.")

    @property
    def group_size(self) -> int:
        """Experts of a group: N_r / D."""
        return self.routed // self.groups

    @property
    def has_bias(self) -> bool:
        """Whether a bias that no gradient reaches takes part in the choice."""
        return self.gate == "sigmoid"
