"""The widths of multi-head latent attention, as data; symbols of the DeepSeek-V2 report."""

from __future__ import annotations

from dataclasses import dataclass

NORM_EPSILON = 1e-6
"""Of the norms on the two latents, whatever the epsilon of the other norms: so the released weights
were made, and transformers writes no key for it."""


@dataclass(frozen=True)
class LatentConfig:
    """What makes the keys and values of all heads functions of one latent (arXiv 2405.04434, 2.1).

    The width of a head without positions, d_n, is `DecoderConfig.head_width`.
    """

    width: int
    """d_c: width of the latent of keys and values."""
    rotary_width: int
    """d_R: width of the rotated part of a query, and of the one rotary key of all heads."""
    value_width: int
    """d_v: width of the value of a head."""
    query_width: int = 0
    """d_q: width of the latent of the queries; 0: queries come straight from the input."""

    def __post_init__(self) -> None:
        for name in ("width", "rotary_width", "value_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.query_width < 0:
            raise ValueError(f"query_width must be 0 or more, got {self.query_width}.")
        if self.rotary_width % 2:
            raise ValueError(f"rotary_width must be even, got {self.rotary_width}.")

    @property
    def cached_width(self) -> int:
        """Numbers that a layer caches for a token: d_c + d_R."""
        return self.width + self.rotary_width
