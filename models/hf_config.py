"""`DecoderConfig` to and from the dictionary of a Hugging Face `config.json`.

Model types `gpt_neox` and `llama` here, `deepseek_v2` and `deepseek_v3` in `models.hf_deepseek`.
Written as transformers 5 writes it (`rope_parameters`),
together with the spelling of earlier versions, so that either reads the same model; read in both
spellings. What a `Decoder` cannot compute (other rotary scalings, other activations) is refused.
Dropout is not part of a `Decoder` and is not read. Token ids are the tokenizer's business: merge
them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from models import hf_deepseek
from models.decoder_config import DecoderConfig
from models.hf_values import flag, integer, number, require, require_whole_heads

ModelType = Literal["gpt_neox", "llama", "deepseek_v2", "deepseek_v3"]
FAMILIES: dict[ModelType, str] = {
    "gpt_neox": "GPTNeoX",
    "llama": "Llama",
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
}
_KINDS = ", ".join(FAMILIES)


def model_type(config: DecoderConfig) -> ModelType:
    """The Hugging Face model type that computes the same function as a `Decoder` of `config`."""
    if config.hybrid is not None:
        raise ValueError(
            f"no Hugging Face model type, {_KINDS}, has layers of windowed attention, so a model "
            f"of this shape cannot be exported: {config.hybrid}."
        )
    if config.latent is not None or config.experts is not None:
        return hf_deepseek.model_type(config)
    if (
        config.norm == "layer_norm"
        and config.feed_forward == "gelu"
        and config.has_biases
        and config.key_value_heads == config.heads
        and config.head_width * config.heads == config.width
        and config.yarn is None
    ):
        return "gpt_neox"
    if (
        config.norm == "rms_norm"
        and config.feed_forward == "swiglu"
        and not config.parallel_residual
        and config.rotary_fraction == 1.0
        and config.yarn is None
    ):
        return "llama"
    raise ValueError(f"no Hugging Face model type, {_KINDS}, has this shape: {config}.")


def from_hf_config(values: Mapping[str, object]) -> DecoderConfig:
    """The shape that a Hugging Face config describes; ValueError names what does not fit."""
    kind = values.get("model_type")
    if kind == "gpt_neox":
        return _from_gpt_neox(values)
    if kind == "llama":
        return _from_llama(values)
    if kind in ("deepseek_v2", "deepseek_v3"):
        return hf_deepseek.from_values(values)
    raise ValueError(f"model_type must be one of {_KINDS}, got {kind!r}.")


def to_hf_config(config: DecoderConfig, *, classes: int | None = None) -> dict[str, object]:
    """The Hugging Face config of a `DecoderLM`, or of a `DecoderClassifier` with `classes`."""
    kind = model_type(config)
    writers = {"gpt_neox": _to_gpt_neox, "llama": _to_llama}
    values = writers.get(kind, hf_deepseek.to_values)(config)
    family = FAMILIES[kind]
    values |= {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initial_std,
        "tie_word_embeddings": config.tied_embeddings,
        "dtype": "float32",
    }
    if classes is None:
        return values | {"architectures": [f"{family}ForCausalLM"]}
    return values | {
        "architectures": [f"{family}ForSequenceClassification"],
        "num_labels": classes,
    }


def _from_gpt_neox(values: Mapping[str, object]) -> DecoderConfig:
    require(values, "hidden_act", "gelu")
    require(values, "attention_bias", True)
    base, fraction = _rotary(
        values, base_name="rotary_emb_base", fraction_name="rotary_pct", default_fraction=0.25
    )
    width, heads = integer(values, "hidden_size"), integer(values, "num_attention_heads")
    require_whole_heads(width, heads)
    return DecoderConfig(
        vocab_size=integer(values, "vocab_size"),
        width=width,
        layers=integer(values, "num_hidden_layers"),
        heads=heads,
        key_value_heads=heads,
        head_width=width // heads,
        feed_forward_width=integer(values, "intermediate_size"),
        max_positions=integer(values, "max_position_embeddings"),
        norm="layer_norm",
        norm_epsilon=number(values, "layer_norm_eps", 1e-5),
        feed_forward="gelu",
        has_biases=True,
        parallel_residual=flag(values, "use_parallel_residual", True),
        rotary_fraction=fraction,
        rotary_base=base,
        tied_embeddings=flag(values, "tie_word_embeddings", False),
        initial_std=number(values, "initializer_range", 0.02),
    )


def _to_gpt_neox(config: DecoderConfig) -> dict[str, object]:
    return {
        "hidden_act": "gelu",
        "attention_bias": True,
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rotary_base,
            "partial_rotary_factor": config.rotary_fraction,
        },
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_base,
    }


def _from_llama(values: Mapping[str, object]) -> DecoderConfig:
    require(values, "hidden_act", "silu")
    has_biases = flag(values, "attention_bias", False)
    require(values, "mlp_bias", has_biases, default=False)
    base, fraction = _rotary(
        values,
        base_name="rope_theta",
        fraction_name="partial_rotary_factor",
        default_fraction=1.0,
    )
    if fraction != 1.0:
        raise ValueError(f"partial_rotary_factor of a llama must be 1.0, got {fraction}.")
    width, heads = integer(values, "hidden_size"), integer(values, "num_attention_heads")
    if values.get("head_dim") is None:
        require_whole_heads(width, heads)
    return DecoderConfig(
        vocab_size=integer(values, "vocab_size"),
        width=width,
        layers=integer(values, "num_hidden_layers"),
        heads=heads,
        key_value_heads=integer(values, "num_key_value_heads", heads),
        head_width=integer(values, "head_dim", width // heads),
        feed_forward_width=integer(values, "intermediate_size"),
        max_positions=integer(values, "max_position_embeddings"),
        norm="rms_norm",
        norm_epsilon=number(values, "rms_norm_eps", 1e-6),
        feed_forward="swiglu",
        has_biases=has_biases,
        parallel_residual=False,
        rotary_fraction=1.0,
        rotary_base=base,
        tied_embeddings=flag(values, "tie_word_embeddings", False),
        initial_std=number(values, "initializer_range", 0.02),
    )


def _to_llama(config: DecoderConfig) -> dict[str, object]:
    return {
        "hidden_act": "silu",
        "attention_bias": config.has_biases,
        "mlp_bias": config.has_biases,
        "rms_norm_eps": config.norm_epsilon,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "rope_theta": config.rotary_base,
    }


def _rotary(
    values: Mapping[str, object], *, base_name: str, fraction_name: str, default_fraction: float
) -> tuple[float, float]:
    """Base and rotated fraction, from `rope_parameters` or from the older top-level keys."""
    nested = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise ValueError(f"rope_parameters must be a mapping, got {nested!r}.")
    rope_type = nested.get("rope_type", nested.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"rope_type must be 'default', got {rope_type!r}.")
    base = number(values, base_name, 10_000.0)
    fraction = number(values, fraction_name, default_fraction)
    return (
        number(nested, "rope_theta", base),
        number(nested, "partial_rotary_factor", fraction),
    )
