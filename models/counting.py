"""Parameters and floating-point operations from the config alone, without building a model.

Parameter counts are exact. FLOPs are those of the matrix products, a multiply-add as two, forward
and backward, and agree with `torch.utils.flop_counter.FlopCounterMode`: attention is counted as the
full T x T square that the counter sees, not as the causal half, with a backward pass of twice the
forward; what a kernel or activation checkpointing computes a second time is not counted, nor are
norms, activations and embedding look-ups. The compute of a whole training (`training_compute`) is
the convention of Kaplan et al. 2020 (arXiv 2001.08361), which halves causal attention.

Symbols: d width, L layers, V vocabulary, N parameters, N' parameters outside both embeddings.
"""

from __future__ import annotations

from typing import NamedTuple

from models.decoder_config import DecoderConfig, gpt_neox_config


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


def parameter_count(config: DecoderConfig) -> int:
    """N of a `DecoderLM`. For GPT-NeoX this is 2 V d + L (12 d^2 + 13 d) + 2 d."""
    embeddings = 1 if config.tied_embeddings else 2
    return non_embedding_count(config) + embeddings * config.vocab_size * config.width


def non_embedding_count(config: DecoderConfig) -> int:
    """N': all parameters but the token embedding and the output embedding."""
    norm = config.width * (2 if config.norm == "layer_norm" else 1)
    block = _block_matrices(config) + 2 * norm
    if config.has_biases:
        block += _fused_width(config) + config.width
        block += _feed_forward_inputs(config) * config.feed_forward_width + config.width
    return config.layers * block + norm


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
    weights = non_embedding_count(config)
    output = config.vocab_size * config.width
    attention = config.layers * config.heads * config.head_width * seq_len
    return TrainingCompute(
        non_embedding=6.0 * weights * trained_tokens,
        with_output_and_attention=6.0 * (weights + output + attention) * trained_tokens,
    )


def _decoder_training_flops(config: DecoderConfig, batch: int, tokens: int) -> int:
    matrices = 6 * batch * tokens * config.layers * _block_matrices(config)
    # Two products (scores, values) of 2 T^2 D each for every head, once forward, twice backward.
    attention = 12 * batch * config.layers * config.heads * tokens**2 * config.head_width
    return matrices + attention


def _block_matrices(config: DecoderConfig) -> int:
    attention = _fused_width(config) + config.heads * config.head_width
    feed_forward = (_feed_forward_inputs(config) + 1) * config.feed_forward_width
    return config.width * (attention + feed_forward)


def _fused_width(config: DecoderConfig) -> int:
    return (config.heads + 2 * config.key_value_heads) * config.head_width


def _feed_forward_inputs(config: DecoderConfig) -> int:
    return 2 if config.feed_forward == "swiglu" else 1
