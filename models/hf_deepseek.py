"""`DecoderConfig` to and from Hugging Face's `deepseek_v2` and `deepseek_v3`, read and written.

Which of the two is decided by the gate: softmax is V2, sigmoid with a selection bias is V3. What
the target format cannot say is refused here, because transformers would load it without a word and
give other logits: it ignores `norm_topk_prob` of V2, and takes mscale for 1 where only one of
YaRN's two mscales is set. The rotary settings are written in both spellings, `rope_parameters` of
transformers 5 and `rope_theta` with `rope_scaling` of other engines. Prediction of several tokens
at once is no part of a `Decoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from models.decoder_config import DecoderConfig, deepseek_config
from models.expert_config import ExpertsConfig
from models.hf_values import flag, integer, number, require
from models.latent_config import LatentConfig
from models.yarn import YarnConfig

DeepseekType = Literal["deepseek_v2", "deepseek_v3"]


def model_type(config: DecoderConfig) -> DeepseekType:
    """The model type that computes the same function; ValueError names the field that none has."""
    latent, experts = config.latent, config.experts
    if latent is None or experts is None:
        raise ValueError(
            "a deepseek checkpoint has latent attention and experts, but latent is "
            f"{latent} and experts is {experts}."
        )
    if config.norm != "rms_norm" or config.parallel_residual or config.tied_embeddings:
        raise ValueError(
            f"a deepseek checkpoint has norm rms_norm, two residual steps and an output embedding "
            f"of its own, but norm is {config.norm}, parallel_residual is "
            f"{config.parallel_residual} and tied_embeddings is {config.tied_embeddings}."
        )
    if not experts.shared:
        raise ValueError("a deepseek checkpoint has shared experts, but shared is 0.")
    if config.yarn is not None:
        _require_same_magnitude(config.yarn)
    if experts.gate == "sigmoid":
        return "deepseek_v3"
    if experts.normalised:
        raise ValueError(
            "normalised must be false to be written as deepseek_v2: transformers ignores "
            "norm_topk_prob there, so the logits would differ."
        )
    if config.width % config.heads:
        raise ValueError(
            f"width ({config.width}) must be a multiple of heads ({config.heads}) to be written as "
            "deepseek_v2: transformers refuses to load it otherwise."
        )
    return "deepseek_v2"


def from_values(values: Mapping[str, object]) -> DecoderConfig:
    """The shape that a Hugging Face config describes; ValueError names what does not fit."""
    is_v3 = values["model_type"] == "deepseek_v3"
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        require(values, name, False)
    require(values, "hidden_act", "silu")
    heads = integer(values, "num_attention_heads")
    require(values, "num_key_value_heads", heads)
    if is_v3:
        require(values, "rope_interleave", True)
        gate, groups, open_groups = "sigmoid", *_groups(values)
    else:
        method = values.get("topk_method") or "greedy"
        if method not in ("greedy", "group_limited_greedy"):
            raise ValueError(
                f"topk_method must be 'greedy' or 'group_limited_greedy', got {method!r}."
            )
        if flag(values, "norm_topk_prob", False):
            raise ValueError(
                "norm_topk_prob must be false for deepseek_v2, where transformers ignores it."
            )
        gate, groups, open_groups = "softmax", *_groups(values)
        if method == "greedy":
            # Kept apart from the choice, groups would still cut the losses and the budget.
            open_groups = groups
    latent = LatentConfig(
        width=integer(values, "kv_lora_rank"),
        rotary_width=integer(values, "qk_rope_head_dim"),
        value_width=integer(values, "v_head_dim"),
        query_width=integer(values, "q_lora_rank", 0),
    )
    experts = ExpertsConfig(
        routed=integer(values, "n_routed_experts"),
        shared=integer(values, "n_shared_experts"),
        per_token=integer(values, "num_experts_per_tok"),
        width=integer(values, "moe_intermediate_size"),
        dense_layers=integer(values, "first_k_dense_replace", 3 if is_v3 else 0),
        groups=groups,
        groups_per_token=open_groups,
        gate="sigmoid" if gate == "sigmoid" else "softmax",
        normalised=flag(values, "norm_topk_prob", is_v3),
        scale=number(values, "routed_scaling_factor", 2.5 if is_v3 else 1.0),
    )
    base, yarn = _rope(values)
    config = deepseek_config(
        vocab_size=integer(values, "vocab_size"),
        width=integer(values, "hidden_size"),
        layers=integer(values, "num_hidden_layers"),
        heads=heads,
        head_width=integer(values, "qk_nope_head_dim"),
        feed_forward_width=integer(values, "intermediate_size"),
        latent=latent,
        experts=experts,
        max_positions=integer(values, "max_position_embeddings"),
        yarn=yarn,
        rotary_base=base,
        norm_epsilon=number(values, "rms_norm_eps", 1e-6),
        initial_std=number(values, "initializer_range", 0.02),
    )
    model_type(config)
    return config


def to_values(config: DecoderConfig) -> dict[str, object]:
    """The keys that only these two model types have; `hf_config.to_hf_config` adds the others."""
    kind = model_type(config)
    latent, experts = config.latent, config.experts
    assert latent is not None
    assert experts is not None
    values: dict[str, object] = {
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": config.norm_epsilon,
        "num_key_value_heads": config.heads,
        "kv_lora_rank": latent.width,
        "q_lora_rank": latent.query_width or None,
        "qk_nope_head_dim": config.head_width,
        "qk_rope_head_dim": latent.rotary_width,
        "v_head_dim": latent.value_width,
        "n_routed_experts": experts.routed,
        "n_shared_experts": experts.shared,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.width,
        "first_k_dense_replace": experts.dense_layers,
        "n_group": experts.groups,
        "topk_group": experts.groups_per_token,
        "routed_scaling_factor": experts.scale,
        "norm_topk_prob": experts.normalised,
        "scoring_func": experts.gate,
        "num_nextn_predict_layers": 0,
        "rope_parameters": _rope_values(config, "rope_type"),
        "rope_theta": config.rotary_base,
        "rope_scaling": None if config.yarn is None else _rope_values(config, "type"),
    }
    if kind == "deepseek_v3":
        return values | {"rope_interleave": True, "topk_method": "noaux_tc"}
    is_limited = experts.groups_per_token < experts.groups
    return values | {"topk_method": "group_limited_greedy" if is_limited else "greedy"}


def _groups(values: Mapping[str, object]) -> tuple[int, int]:
    groups = integer(values, "n_group", 1)
    return groups, integer(values, "topk_group", groups)


def _rope(values: Mapping[str, object]) -> tuple[float, YarnConfig | None]:
    """Base and YaRN, from `rope_parameters` or from the older keys."""
    nested = values.get("rope_parameters") or values.get("rope_scaling")
    if nested is None and values.get("rope_theta") is None:
        raise ValueError(
            "rope settings are absent: neither rope_parameters nor rope_theta is there, and a "
            "guess would read every position wrongly."
        )
    nested = nested or {}
    if not isinstance(nested, Mapping):
        raise ValueError(f"rope_parameters must be a mapping, got {nested!r}.")
    base = number(nested, "rope_theta", number(values, "rope_theta", 10_000.0))
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "yarn":
        raise ValueError(f"rope_type must be 'default' or 'yarn', got {kind!r}.")
    require(nested, "truncate", True)
    if nested.get("attention_factor") is not None:
        raise ValueError("attention_factor must be absent: mscale and mscale_all_dim say it.")
    yarn = YarnConfig(
        factor=number(nested, "factor"),
        original_positions=integer(nested, "original_max_position_embeddings"),
        beta_fast=number(nested, "beta_fast", 32.0),
        beta_slow=number(nested, "beta_slow", 1.0),
        mscale=number(nested, "mscale", 1.0),
        mscale_all_dim=number(nested, "mscale_all_dim", 0.0),
    )
    _require_same_magnitude(yarn)
    return base, yarn


def _require_same_magnitude(yarn: YarnConfig) -> None:
    """Refuse the mscales for which transformers 5.23 multiplies cosines by something else."""
    both = bool(yarn.mscale) and bool(yarn.mscale_all_dim)
    if not both and (yarn.mscale, yarn.mscale_all_dim) != (1.0, 0.0):
        raise ValueError(
            f"mscale ({yarn.mscale}) and mscale_all_dim ({yarn.mscale_all_dim}) must both be set, "
            "or be 1 and 0: transformers reads anything else as 1 and 0."
        )


def _rope_values(config: DecoderConfig, kind_name: str) -> dict[str, object]:
    yarn = config.yarn
    if yarn is None:
        return {kind_name: "default", "rope_theta": config.rotary_base}
    return {
        kind_name: "yarn",
        "rope_theta": config.rotary_base,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_positions,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
        "mscale_all_dim": yarn.mscale_all_dim,
    }
