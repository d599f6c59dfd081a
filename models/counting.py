"""Parameters and floating-point operations from the config alone, without building a model.

Parameter counts are exact. FLOPs are those of the matrix products, a multiply-add as two, forward
and backward, and agree with `torch.utils.flop_counter.FlopCounterMode`: attention is counted as the
full T x T square that the counter sees, not as the causal half, with a backward pass of twice the
forward, and windowed attention as a band of T x v; what a kernel or activation checkpointing
computes a second time is not counted, nor are norms, activations and embedding look-ups. The
compute of a whole training (`training_compute`) is the convention of Kaplan et al. 2020 (arXiv
2001.08361), which halves causal attention.

Of a mixture of experts all parameters are counted, but FLOPs only of the experts that a token
meets.

Symbols: d width, L layers, V vocabulary, N parameters, N' parameters outside both embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from models.decoder_config import DecoderConfig, deepseek_config, gpt_neox_config
from models.expert_config import ExpertsConfig
from models.latent_config import LatentConfig


def _pythia(vocab_size: int, width: int, layers: int, heads: int) -> DecoderConfig:
    return gpt_neox_config(vocab_size=vocab_size, width=width, layers=layers, heads=heads)


PYTHIA: dict[str, DecoderConfig] = {
    "70m": _pythia(50_304, 512, 6, 8),
    "160m": _pythia(50_304, 768, 12, 12),
    "410m": _pythia(50_304, 1024, 24, 16),
    "1b": _pythia(50_304, 2048, 16, 8),
    "1.4b": _pythia(50_304, 2048, 24, 16),
    "2.8b": _pythia(50_304, 2560, 32, 32),
    "6.9b": _pythia(50_432, 4096, 32, 32),
    "12b": _pythia(50_688, 5120, 36, 40),
}
"""The Pythia suite (Biderman et al. 2023, arXiv 2304.01373), vocabulary padded as released."""


_LATENT = LatentConfig(width=512, rotary_width=64, value_width=128)
_QUERY_LATENT = replace(_LATENT, query_width=1536)

DEEPSEEK: dict[str, DecoderConfig] = {
    "v2-lite": deepseek_config(
        vocab_size=102_400,
        width=2048,
        layers=27,
        heads=16,
        head_width=128,
        feed_forward_width=10_944,
        latent=_LATENT,
        experts=ExpertsConfig(routed=64, shared=2, per_token=6, width=1408, dense_layers=1),
    ),
    "v2": deepseek_config(
        vocab_size=102_400,
        width=5120,
        layers=60,
        heads=128,
        head_width=128,
        feed_forward_width=12_288,
        latent=_QUERY_LATENT,
        experts=ExpertsConfig(
            routed=160,
            shared=2,
            per_token=6,
            width=1536,
            dense_layers=1,
            groups=8,
            groups_per_token=3,
            scale=16.0,
        ),
    ),
    "v3": deepseek_config(
        vocab_size=129_280,
        width=7168,
        layers=61,
        heads=128,
        head_width=128,
        feed_forward_width=18_432,
        latent=_QUERY_LATENT,
        experts=ExpertsConfig(
            routed=256,
            shared=1,
            per_token=8,
            width=2048,
            dense_layers=3,
            groups=8,
            groups_per_token=4,
            gate="sigmoid",
            normalised=True,
            scale=2.5,
        ),
    ),
}
"""The DeepSeek models as released (arXiv 2405.04434, 2412.19437), V3 without its second head."""


def parameter_count(config: DecoderConfig) -> int:
    """N of a `DecoderLM`. For GPT-NeoX this is 2 V d + L (12 d^2 + 13 d) + 2 d."""
    embeddings = 1 if config.tied_embeddings else 2
    return non_embedding_count(config) + embeddings * config.vocab_size * config.width


def non_embedding_count(config: DecoderConfig) -> int:
    """N': all parameters but the token embedding and the output embedding."""
    return _parameters(config, is_active_only=False)


def active_count(config: DecoderConfig) -> int:
    """Parameters that one token meets, embeddings left out: of the routed experts only K."""
    return _parameters(config, is_active_only=True)


def cached_numbers(config: DecoderConfig) -> int:
    """Numbers that all layers together cache of a token: (d_c + d_R) L, or 2 K D L."""
    if config.latent is not None:
        return config.layers * config.latent.cached_width
    return config.layers * 2 * config.key_value_heads * config.head_width


def classifier_parameter_count(config: DecoderConfig, classes: int) -> int:
    """Parameters of a `DecoderClassifier`: one embedding and the head, no output embedding."""
    return non_embedding_count(config) + (config.vocab_size + classes) * config.width


def lm_training_flops(
    config: DecoderConfig, *, batch: int, tokens: int, targets: int | None = None
) -> int:
    """FLOPs of one forward and backward pass of a `DecoderLM` on a [batch, tokens] batch.

    Args:
        config: The shape of the model.
        batch: Rows.
        tokens: Tokens of a row, padding included.
        targets: Rows that reach the output embedding; every token when absent.
    """
    rows = batch * tokens if targets is None else targets
    return _decoder_training_flops(config, batch, tokens) + (
        6 * rows * config.vocab_size * config.width
    )


def classifier_training_flops(
    config: DecoderConfig, *, batch: int, tokens: int, classes: int
) -> int:
    """FLOPs of one forward and backward pass of a `DecoderClassifier`; see `lm_training_flops`."""
    return _decoder_training_flops(config, batch, tokens) + 6 * batch * classes * config.width


class TrainingCompute(NamedTuple):
    """The FLOPs of a whole training, by two conventions."""

    non_embedding: float
    """6 N' D."""
    with_output_and_attention: float
    """6 (N' + V d) D + 6 L d s D: output embedding and causal attention included."""


def training_compute(
    config: DecoderConfig, *, trained_tokens: float, seq_len: int
) -> TrainingCompute:
    """C of a language model of shape `config` on D = `trained_tokens` in rows of s = `seq_len`."""
    weights = active_count(config)
    output = config.vocab_size * config.width
    attention = config.layers * config.heads * sum(head_widths(config)) / 2 * seq_len
    return TrainingCompute(
        non_embedding=6.0 * weights * trained_tokens,
        with_output_and_attention=6.0 * (weights + output + attention) * trained_tokens,
    )


def _decoder_training_flops(config: DecoderConfig, batch: int, tokens: int) -> int:
    layers = range(config.layers)
    matrices = sum(
        _attention_matrices(config) + _feed_forward_matrices(config, layer, is_active_only=True)
        for layer in layers
    )
    # Two products of 2 T^2 D each for every head, once forward, twice backward.
    columns = sum(min(config.window(layer) or tokens, tokens) for layer in layers)
    attention = 6 * batch * config.heads * tokens * columns * sum(head_widths(config))
    return 6 * batch * tokens * matrices + attention


def head_widths(config: DecoderConfig) -> tuple[int, int]:
    """Width of the query and key of a head, and width of its value."""
    if config.latent is not None:
        return config.head_width + config.latent.rotary_width, config.latent.value_width
    return config.head_width, config.head_width


def _parameters(config: DecoderConfig, *, is_active_only: bool) -> int:
    norm = config.width * (2 if config.norm == "layer_norm" else 1)
    block = _attention_matrices(config) + 2 * norm
    if config.latent is not None:
        # Norms of the two latents.
        block += config.latent.width + config.latent.query_width
    if config.has_biases:
        block += _fused_width(config) + config.width
        block += _feed_forward_inputs(config) * config.feed_forward_width + config.width
    feed_forward = sum(
        _feed_forward_matrices(config, layer, is_active_only=is_active_only)
        for layer in range(config.layers)
    )
    return config.layers * block + feed_forward + norm


def _attention_matrices(config: DecoderConfig) -> int:
    d, h, latent = config.width, config.heads, config.latent
    if latent is None:
        return d * (_fused_width(config) + h * config.head_width)
    head = config.head_width + latent.rotary_width
    source = latent.query_width or d
    query = (d * latent.query_width if latent.query_width else 0) + source * h * head
    up = latent.width * h * (config.head_width + latent.value_width)
    return query + d * latent.cached_width + up + h * latent.value_width * d


def _feed_forward_matrices(config: DecoderConfig, layer: int, *, is_active_only: bool) -> int:
    experts = config.experts
    if experts is None or not config.has_experts(layer):
        return config.width * (_feed_forward_inputs(config) + 1) * config.feed_forward_width
    routed = experts.per_token if is_active_only else experts.routed
    return config.width * (3 * experts.width * (routed + experts.shared) + experts.routed)


def _fused_width(config: DecoderConfig) -> int:
    return (config.heads + 2 * config.key_value_heads) * config.head_width


def _feed_forward_inputs(config: DecoderConfig) -> int:
    return 2 if config.feed_forward == "swiglu" else 1
