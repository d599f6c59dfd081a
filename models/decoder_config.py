"""The shape of a decoder-only transformer, as data: one dataclass for GPT-NeoX, Llama and DeepSeek.

GPT-NeoX (Black et al. 2022, arXiv 2204.06745; the Pythia models), Llama (Touvron et al. 2023, arXiv
2302.13971; SmolLM2) and DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437) differ in the choices
below and in nothing else, so one model reads them from its config. What only some models have is a
section of its own: `latent` (multi-head latent attention), `experts` (a mixture of experts), `yarn`
and `hybrid` (windowed attention in most layers). This module holds no torch and imports in no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from models.expert_config import ExpertsConfig
from models.hybrid_config import HybridConfig
from models.latent_config import LatentConfig
from models.yarn import YarnConfig

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
    hybrid: HybridConfig | None = None,
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
        hybrid=hybrid,
    )


def deepseek_config(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    head_width: int,
    feed_forward_width: int,
    latent: LatentConfig | None,
    experts: ExpertsConfig | None,
    key_value_heads: int | None = None,
    max_positions: int = 4096,
    yarn: YarnConfig | None = None,
    rotary_base: float = 10_000.0,
    norm_epsilon: float = 1e-6,
    initial_std: float = 0.006,
) -> DecoderConfig:
    """DeepSeek: latent attention and experts; with `latent` None plain heads, to compare with."""
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=heads if key_value_heads is None else key_value_heads,
        head_width=head_width,
        feed_forward_width=feed_forward_width,
        max_positions=max_positions,
        norm="rms_norm",
        norm_epsilon=norm_epsilon,
        feed_forward="swiglu",
        has_biases=False,
        parallel_residual=False,
        rotary_fraction=1.0,
        rotary_base=rotary_base,
        initial_std=initial_std,
        latent=latent,
        experts=experts,
        yarn=yarn,
    )


def decoder_config_from(values: Mapping[str, Any]) -> DecoderConfig:
    """The config that `dataclasses.asdict` turned into `values`."""
    sections = {
        "latent": LatentConfig,
        "experts": ExpertsConfig,
        "yarn": YarnConfig,
        "hybrid": HybridConfig,
    }
    built = {
        name: section(**values[name])
        for name, section in sections.items()
        if values.get(name) is not None
    }
    return DecoderConfig(**{**values, **built})


def _require_whole_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"width ({width}) must be a multiple of heads ({heads}).")


@dataclass(frozen=True)
class DecoderConfig:
    """Every choice that fixes the parameters and the arithmetic of a `Decoder`.

    Build one with `gpt_neox_config`, `llama_config` or `deepseek_config`, or read one with
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
    """D: width of one head; with `latent` that of its part without positions, d_n."""
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
    latent: LatentConfig | None = None
    """Multi-head latent attention; None: plain heads."""
    experts: ExpertsConfig | None = None
    """A mixture of experts in all layers but the first few; None: feed-forward layers only."""
    yarn: YarnConfig | None = None
    """A rotary embedding that reaches further than it was trained to; None: plain."""
    hybrid: HybridConfig | None = None
    """Windowed attention in all layers but a few; None: every layer sees everything."""

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
        if self.latent is not None and (self.has_biases or self.key_value_heads != self.heads):
            raise ValueError(
                f"latent attention has no biases (has_biases is {self.has_biases}) and keys and "
                f"values for every head (key_value_heads is {self.key_value_heads} of "
                f"{self.heads})."
            )
        if self.experts is not None and (self.has_biases or self.feed_forward != "swiglu"):
            raise ValueError(
                f"experts are swiglu layers without biases, but feed_forward is "
                f"{self.feed_forward} and has_biases is {self.has_biases}."
            )
        if self.hybrid is not None:
            self._require_hybrid(self.hybrid)

    def _require_hybrid(self, hybrid: HybridConfig) -> None:
        if self.latent is not None:
            raise ValueError("latent attention has no windowed layers: leave hybrid out.")
        if hybrid.full_attention_layers >= self.layers:
            raise ValueError(
                f"full_attention_layers ({hybrid.full_attention_layers}) must be below layers "
                f"({self.layers}): with all of them full, leave hybrid out."
            )

    @property
    def rotary_width(self) -> int:
        """R: channels of a head that are rotated."""
        if self.latent is not None:
            return self.latent.rotary_width
        return int(self.head_width * self.rotary_fraction)

    def window(self, layer: int) -> int | None:
        """v of a layer of windowed attention; None: it sees everything."""
        hybrid = self.hybrid
        if hybrid is None or layer in hybrid.full_layers(self.layers):
            return None
        return hybrid.sliding_window

    def has_experts(self, layer: int) -> bool:
        """Whether the layer's feed-forward is a mixture of experts."""
        return self.experts is not None and layer >= self.experts.dense_layers
