"""The decoder of mla_moe as a section of the config, and how it becomes a `DecoderConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.errors import ConfigError
from models.decoder_config import DecoderConfig, deepseek_config
from models.expert_config import GATES, ExpertsConfig, GateKind
from models.latent_config import LatentConfig
from models.yarn import YarnConfig


@dataclass(frozen=True)
class AttentionConfig:
    """Latent attention, or plain heads to compare it with."""

    kind: str = field(default="latent", metadata={"choices": ("latent", "heads")})
    """`latent`: multi-head latent attention; `heads`: multi-head, grouped-query, multi-query."""
    heads: int = 4
    """h: query heads."""
    head_width: int = 32
    """d_n: width of a head, with `latent` of its part without positions."""
    key_value_heads: int | None = None
    """With `heads`: heads of keys and values; null: as many as query heads."""
    latent_width: int = 64
    """d_c: width of the cached latent."""
    rotary_width: int = 48
    """d_R: width of the rotated part, and of the one rotary key of all heads."""
    value_width: int = 32
    """d_v: width of the value of a head."""
    query_latent_width: int = 64
    """d_q: width of the latent of queries; 0: none."""


@dataclass(frozen=True)
class MixtureConfig:
    """Shared and routed experts, in place of the feed-forward of all layers but the first few."""

    routed: int = 16
    """N_r: routed experts of a layer."""
    shared: int = 1
    """N_s: experts that every token goes through."""
    per_token: int = 3
    """K: routed experts of a token."""
    width: int = 64
    """f: width inside an expert."""
    dense_layers: int = 1
    """Leading layers with a plain feed-forward."""
    groups: int = 4
    """D: groups of experts, each meant for one device."""
    groups_per_token: int = 2
    """M: groups that the experts of a token may lie in."""
    gate: str = field(default="sigmoid", metadata={"choices": GATES})
    """`softmax` with balance losses (V2), or `sigmoid` with a selection bias (V3)."""
    normalised: bool = True
    """Divide the gates of the chosen experts by their sum."""
    scale: float = 1.0
    """rho: factor of the gates."""
    capacity_factor: float | None = None
    """Assignments that a group takes in training, by its fair share; null: all of them."""
    exempt_share: float = 0.1
    """Share of the sequences whose tokens are never dropped."""


@dataclass(frozen=True)
class YarnSection:
    """A longer reach for positions that were trained shorter; used in a long-context stage."""

    factor: float = 1.0
    """F: the new length by the old one; 1: plain rotary positions."""
    original_positions: int = 4096
    """L0: the length trained before."""
    beta_fast: float = 32.0
    """Channels that turn more often within L0 stay."""
    beta_slow: float = 1.0
    """Channels that turn less often are divided by F."""
    mscale: float = 0.707
    """Numerator of the factor of cosines and sines."""
    mscale_all_dim: float = 0.707
    """Its denominator; and, squared, the factor of the scale of the softmax."""


@dataclass(frozen=True)
class ModelConfig:
    """The decoder."""

    source: str | None = None
    """What training begins with: a bundle of mla_moe, a folder in Hugging Face layout or the name
    of a model on a hub, of the shape given here; null: random weights."""
    vocab_size: int = 256
    """V: rows of the token embedding; bytes need 256."""
    width: int = 128
    """d: width of the residual stream."""
    layers: int = 4
    """l: number of blocks."""
    feed_forward_width: int = 384
    """Width inside the feed-forward of the dense layers."""
    max_positions: int = 2048
    """Longest sequence."""
    initial_std: float = 0.02
    """Standard deviation of the initial weights."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Attention of all layers."""
    experts: MixtureConfig = field(default_factory=MixtureConfig)
    """The mixture of experts."""
    yarn: YarnSection = field(default_factory=YarnSection)
    """A longer reach for positions."""


def decoder_config(config: ModelConfig) -> DecoderConfig:
    """The shape that the section describes; a ConfigError that names the field when none fits."""
    attention, yarn = config.attention, config.yarn
    try:
        latent = None
        if attention.kind == "latent":
            latent = LatentConfig(
                width=attention.latent_width,
                rotary_width=attention.rotary_width,
                value_width=attention.value_width,
                query_width=attention.query_latent_width,
            )
            if attention.key_value_heads is not None:
                raise ValueError(
                    f"attention.key_value_heads ({attention.key_value_heads}) has no meaning for "
                    "latent attention: leave it out."
                )
        return deepseek_config(
            vocab_size=config.vocab_size,
            width=config.width,
            layers=config.layers,
            heads=attention.heads,
            head_width=attention.head_width,
            key_value_heads=attention.key_value_heads,
            feed_forward_width=config.feed_forward_width,
            latent=latent,
            experts=_experts(config.experts),
            max_positions=config.max_positions,
            yarn=_yarn(yarn) if yarn.factor != 1.0 else None,
            initial_std=config.initial_std,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _experts(config: MixtureConfig) -> ExpertsConfig:
    gate: GateKind = "sigmoid" if config.gate == "sigmoid" else "softmax"
    return ExpertsConfig(
        routed=config.routed,
        shared=config.shared,
        per_token=config.per_token,
        width=config.width,
        dense_layers=config.dense_layers,
        groups=config.groups,
        groups_per_token=config.groups_per_token,
        gate=gate,
        normalised=config.normalised,
        scale=config.scale,
        capacity_factor=config.capacity_factor,
        exempt_share=config.exempt_share,
    )


def _yarn(config: YarnSection) -> YarnConfig:
    return YarnConfig(
        factor=config.factor,
        original_positions=config.original_positions,
        beta_fast=config.beta_fast,
        beta_slow=config.beta_slow,
        mscale=config.mscale,
        mscale_all_dim=config.mscale_all_dim,
    )
