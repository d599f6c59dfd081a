"""The shape of a decoder of gated attention units, its parameters and its FLOPs; holds no torch.

Symbols: d width, e = expansion * d, s head width, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GauConfig:
    """Every choice that fixes the parameters and the arithmetic of a `GauDecoder`."""

    vocab_size: int
    """V."""
    width: int
    """d: width of the residual stream."""
    layers: int
    """L: number of units."""
    expansion: int = 2
    """e / d: width of gate and value by the width of the stream."""
    head_width: int = 128
    """s: width of the one head of queries and keys."""
    rotary_base: float = 10_000.0
    """b in the frequencies b^(-2m/s)."""
    initial_std: float = 0.02
    """Standard deviation of the embedding's initial weights."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "expansion", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.head_width % 2:
            raise ValueError(f"head_width must be even to be rotated, got {self.head_width}.")

    @property
    def rotary_width(self) -> int:
        """All channels of the head are rotated."""
        return self.head_width

    @property
    def value_width(self) -> int:
        """e."""
        return self.expansion * self.width


def gau_parameter_count(config: GauConfig) -> int:
    """L (d (2 e + s) + e d + 4 s + d) + 2 V d: projections, scales and offsets, norms, embeddings.

    The output embedding is not tied.
    """
    d, e, s = config.width, config.value_width, config.head_width
    unit = d * (2 * e + s) + e * d + 4 * s + d
    return config.layers * unit + 2 * config.vocab_size * d


def gau_training_flops(config: GauConfig, *, batch: int, tokens: int) -> int:
    """FLOPs of the products of one forward and backward pass, attention as the full square."""
    d, e, s = config.width, config.value_width, config.head_width
    matrices = config.layers * (d * (2 * e + s) + e * d) + config.vocab_size * d
    attention = config.layers * tokens * (s + e)
    return 6 * batch * tokens * (matrices + attention)
