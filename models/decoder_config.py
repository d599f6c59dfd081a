"""The shape of a decoder-only transformer, as data: one dataclass for GPT-NeoX and for Llama.

GPT-NeoX (Black et al. 2022, arXiv 2204.06745; the Pythia models) and Llama (Touvron et al. 2023,
arXiv 2302.13971; SmolLM2) differ in the choices below and in nothing else, so one model reads them
from its config. This module holds no torch and imports in no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FeedForwardKind = Literal["gelu", "swiglu"]
NormKind = Literal["layer_norm", "rms_norm"]


def gpt_neox_config(
    *, vocab_size: int, width: int, layers: int, heads: int, max_positions: int = 2048
) -> DecoderConfig:
    """GPT-NeoX as in Pythia: parallel residual, LayerNorm, 25 % rotary, GELU of 4 d, biases."""
    _require_whole_heads(width, heads)
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=heads,
        head_width=width // heads,
        feed_forward_width=4 * width,
        max_positions=max_positions,
        norm="layer_norm",
        norm_epsilon=1e-5,
        feed_forward="gelu",
        has_biases=True,
        parallel_residual=True,
        rotary_fraction=0.25,
    )


def llama_config(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    feed_forward_width: int,
    max_positions: int = 2048,
    rotary_base: float = 10_000.0,
    tied_embeddings: bool = False,
) -> DecoderConfig:
    """Llama: sequential residual, RMSNorm, full rotary, SwiGLU, grouped-query heads, no biases."""
    _require_whole_heads(width, heads)
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=width // heads,
        feed_forward_width=feed_forward_width,
        max_positions=max_positions,
        norm="rms_norm",
        norm_epsilon=1e-5,
        feed_forward="swiglu",
        has_biases=False,
        parallel_residual=False,
        rotary_fraction=1.0,
        rotary_base=rotary_base,
        tied_embeddings=tied_embeddings,
    )


def _require_whole_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"width ({width}) must be a multiple of heads ({heads}).")


@dataclass(frozen=True)
class DecoderConfig:
    """Every choice that fixes the parameters and the arithmetic of a `Decoder`.

    Build one with `gpt_neox_config` or `llama_config`, or read one with
    `models.hf_config.from_hf_config`.
    """

    vocab_size: int
    """V: rows of the token embedding, padding of the vocabulary included."""
    width: int
    """d: width of the residual stream."""
    layers: int
    """L: number of blocks."""
    heads: int
    """H: query heads."""
    key_value_heads: int
    """K: key and value heads; each serves `heads / key_value_heads` query heads."""
    head_width: int
    """D: width of one head."""
    feed_forward_width: int
    """F: width inside the feed-forward layer."""
    max_positions: int
    """Longest sequence the model was made for. Rotary positions do not enforce it."""
    norm: NormKind
    """`layer_norm` (with bias) or `rms_norm`."""
    norm_epsilon: float
    """Added to the variance inside the norms."""
    feed_forward: FeedForwardKind
    """`gelu`: W2 gelu(W1 x); `swiglu`: W_down(silu(W_gate x) * W_up x)."""
    has_biases: bool
    """Whether the linear layers of attention and feed-forward carry biases."""
    parallel_residual: bool
    """x + Attn(LN1 x) + MLP(LN2 x) when true, two residual steps when false."""
    rotary_fraction: float
    """Leading share of each head that is rotated."""
    rotary_base: float = 10_000.0
    """b in the frequencies b^(-2m/R)."""
    tied_embeddings: bool = False
    """Whether the output embedding is the token embedding."""
    initial_std: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "width",
            "layers",
            "heads",
            "key_value_heads",
            "head_width",
            "feed_forward_width",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"heads ({self.heads}) must be a multiple of "
                f"key_value_heads ({self.key_value_heads})."
            )
        if not 0.0 < self.rotary_fraction <= 1.0 or self.rotary_width % 2 or not self.rotary_width:
            raise ValueError(
                f"rotary_fraction ({self.rotary_fraction}) of head_width ({self.head_width}) must "
                f"give an even number of at least 2 channels, got {self.rotary_width}."
            )

    @property
    def rotary_width(self) -> int:
        """R: channels of a head that are rotated."""
        return int(self.head_width * self.rotary_fraction)
