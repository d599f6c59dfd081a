"""State dictionaries of `DecoderLM` and `DecoderClassifier` to and from Hugging Face names.

Pure functions on dictionaries of tensors. The layouts are those of the files that transformers
writes for `gpt_neox`, `llama` (causal language models and sequence classifiers), `deepseek_v2` and
`deepseek_v3` (language models). Five things differ besides names: GPT-NeoX interleaves query, key
and value per head, [heads, 3, head width], where a `Decoder` stacks them, [3, heads, head width];
Llama keeps query, key, value and gate, up as separate matrices where a `Decoder` fuses them;
DeepSeek keeps the rotated rows of a query head behind the others and pairs neighbours, where a
`Decoder` has them in front and pairs halves; it keeps every expert apart where a `Decoder` stacks
them; and a tied output embedding is not stored at all. Both directions keep every bit. FP8 weights
are multiplied by their scales when they are read (`models.fp8`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from models.classifier import DecoderClassifier
from models.decoder import Decoder, DecoderLM
from models.decoder_config import DecoderConfig
from models.fp8 import dequantised
from models.hf_config import model_type

State = dict[str, torch.Tensor]

_HEAD = "score.weight"
_SYNONYMS = {"lm_head.weight": "embed_out.weight"}
"""GPT-NeoX: transformers 5 renamed the output embedding in memory, but not in its files."""
_BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Constants that older versions stored beside the weights."""


def from_hf(state: Mapping[str, torch.Tensor], config: DecoderConfig) -> State:
    """Weights in Hugging Face layout as a state dict of ours.

    The result is that of a `DecoderClassifier` where `score.weight` is present, otherwise that of
    a `DecoderLM`. Tensors that are only renamed are shared with `state`.

    Raises:
        ValueError: A tensor is missing, unknown or of the wrong shape.
    """
    kind = model_type(config)
    given = {
        _SYNONYMS.get(name, name) if kind == "gpt_neox" else name: tensor
        for name, tensor in dequantised(state).items()
        if not name.endswith(_BUFFERS)
    }
    extra = f"model.layers.{config.layers}."
    if kind == "deepseek_v3" and f"{extra}eh_proj.weight" in given:
        # The released weights carry a module that predicts a second token; a `Decoder` has none.
        given = {name: tensor for name, tensor in given.items() if not name.startswith(extra)}
    if config.tied_embeddings:
        _drop_tied_output(given, kind)
    classes = len(given[_HEAD]) if _HEAD in given else None
    _require_same(given, to_hf(_blank_state(config, classes), config), f"a {kind} checkpoint")
    return {part.ours: part.join(given) for part in _parts(config, classes)}


def to_hf(state: Mapping[str, torch.Tensor], config: DecoderConfig) -> State:
    """A state dict of ours in Hugging Face layout, under the names that transformers writes.

    Tensors that are only renamed are shared with `state`, all others own their memory.

    Raises:
        ValueError: A tensor is missing, unknown or of the wrong shape.
    """
    classes = len(state["head.weight"]) if "head.weight" in state else None
    _require_same(state, _blank_state(config, classes), "a state dict of this config")
    return {
        name: tensor
        for part in _parts(config, classes)
        for name, tensor in part.split(state[part.ours]).items()
    }


@dataclass(frozen=True)
class _Part:
    """One tensor of ours and what it is called, and cut into, on the other side."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    """Rows of each of `theirs` when there are several."""
    interleaved_heads: int = 0
    """GPT-NeoX: heads between which query, key and value rows alternate on the other side."""
    stack: int = 0
    """DeepSeek: experts that ours stacks along a first axis of its own."""
    order: tuple[int, ...] = ()
    """DeepSeek: for each row of a head of ours the row of the head on the other side."""

    def split(self, tensor: torch.Tensor) -> State:
        if self.order:
            theirs = torch.empty_like(heads := torch.unflatten(tensor, 0, (-1, len(self.order))))
            theirs[:, list(self.order)] = heads
            return {self.theirs[0]: theirs.flatten(0, 1)}
        if self.stack:
            tensor = tensor.flatten(0, 1)
        if self.interleaved_heads:
            stacked = torch.unflatten(tensor, 0, (3, self.interleaved_heads, -1))
            return {self.theirs[0]: stacked.transpose(0, 1).flatten(0, 2).contiguous()}
        if self.rows:
            pieces = torch.split(tensor, list(self.rows))
            return {name: piece.clone() for name, piece in zip(self.theirs, pieces, strict=True)}
        return {self.theirs[0]: tensor}

    def join(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.order:
            heads = torch.unflatten(state[self.theirs[0]], 0, (-1, len(self.order)))
            return heads[:, list(self.order)].flatten(0, 1)
        if self.interleaved_heads:
            interleaved = torch.unflatten(state[self.theirs[0]], 0, (self.interleaved_heads, 3, -1))
            return interleaved.transpose(0, 1).flatten(0, 2).contiguous()
        if self.rows:
            joined = torch.cat([state[name] for name in self.theirs])
            return torch.unflatten(joined, 0, (self.stack, -1)) if self.stack else joined
        return state[self.theirs[0]]


def _parts(config: DecoderConfig, classes: int | None) -> Iterator[_Part]:
    kind = model_type(config)
    families = {"gpt_neox": _gpt_neox_parts, "llama": _llama_parts}
    yield from families.get(kind, _deepseek_parts)(config)
    if classes is not None:
        yield _Part("head.weight", (_HEAD,))
    elif not config.tied_embeddings:
        output = "embed_out.weight" if kind == "gpt_neox" else "lm_head.weight"
        yield _Part("output_embedding.weight", (output,))


def _gpt_neox_parts(config: DecoderConfig) -> Iterator[_Part]:
    both = ("weight", "bias")
    yield _Part("decoder.embedding.weight", ("gpt_neox.embed_in.weight",))
    yield from _renamed("decoder.final_norm", "gpt_neox.final_layer_norm", both)
    for layer in range(config.layers):
        ours, theirs = f"decoder.blocks.{layer}", f"gpt_neox.layers.{layer}"
        for name, other in (
            ("attention_norm", "input_layernorm"),
            ("feed_forward_norm", "post_attention_layernorm"),
            ("attention.output", "attention.dense"),
            ("feed_forward.up", "mlp.dense_h_to_4h"),
            ("feed_forward.down", "mlp.dense_4h_to_h"),
        ):
            yield from _renamed(f"{ours}.{name}", f"{theirs}.{other}", both)
        for kind in both:
            yield _Part(
                f"{ours}.attention.query_key_value.{kind}",
                (f"{theirs}.attention.query_key_value.{kind}",),
                interleaved_heads=config.heads,
            )


def _llama_parts(config: DecoderConfig) -> Iterator[_Part]:
    kinds = ("weight", "bias") if config.has_biases else ("weight",)
    query, shared = config.heads * config.head_width, config.key_value_heads * config.head_width
    yield _Part("decoder.embedding.weight", ("model.embed_tokens.weight",))
    yield from _renamed("decoder.final_norm", "model.norm", ("weight",))
    for layer in range(config.layers):
        ours, theirs = f"decoder.blocks.{layer}", f"model.layers.{layer}"
        for name, other in (
            ("attention_norm", "input_layernorm"),
            ("feed_forward_norm", "post_attention_layernorm"),
        ):
            yield from _renamed(f"{ours}.{name}", f"{theirs}.{other}", ("weight",))
        for name, other in (
            ("attention.output", "self_attn.o_proj"),
            ("feed_forward.down", "mlp.down_proj"),
        ):
            yield from _renamed(f"{ours}.{name}", f"{theirs}.{other}", kinds)
        for kind in kinds:
            yield _Part(
                f"{ours}.attention.query_key_value.{kind}",
                tuple(f"{theirs}.self_attn.{name}_proj.{kind}" for name in "qkv"),
                rows=(query, shared, shared),
            )
            yield _Part(
                f"{ours}.feed_forward.gate_up.{kind}",
                tuple(f"{theirs}.mlp.{name}_proj.{kind}" for name in ("gate", "up")),
                rows=(config.feed_forward_width, config.feed_forward_width),
            )


def _deepseek_parts(config: DecoderConfig) -> Iterator[_Part]:
    yield _Part("decoder.embedding.weight", ("model.embed_tokens.weight",))
    yield from _renamed("decoder.final_norm", "model.norm", ("weight",))
    for layer in range(config.layers):
        ours, theirs = f"decoder.blocks.{layer}", f"model.layers.{layer}"
        for name, other in (
            ("attention_norm", "input_layernorm"),
            ("feed_forward_norm", "post_attention_layernorm"),
        ):
            yield from _renamed(f"{ours}.{name}", f"{theirs}.{other}", ("weight",))
        yield from _latent_parts(config, f"{ours}.attention", f"{theirs}.self_attn")
        if config.has_experts(layer):
            yield from _expert_parts(config, f"{ours}.feed_forward", f"{theirs}.mlp")
        else:
            width = config.feed_forward_width
            yield from _swiglu_parts(f"{ours}.feed_forward", f"{theirs}.mlp", width)


def _latent_parts(config: DecoderConfig, ours: str, theirs: str) -> Iterator[_Part]:
    latent = config.latent
    assert latent is not None
    rotary, nope = latent.rotary_width, config.head_width
    halves = [*range(0, rotary, 2), *range(1, rotary, 2)]
    query = tuple([nope + row for row in halves] + list(range(nope)))
    down = tuple(list(range(latent.width)) + [latent.width + row for row in halves])
    source = "q_b_proj" if latent.query_width else "q_proj"
    yield _Part(f"{ours}.query.weight", (f"{theirs}.{source}.weight",), order=query)
    yield _Part(f"{ours}.latent_down.weight", (f"{theirs}.kv_a_proj_with_mqa.weight",), order=down)
    renamed = [
        ("latent_norm", "kv_a_layernorm"),
        ("key_value_up", "kv_b_proj"),
        ("output", "o_proj"),
    ]
    if latent.query_width:
        renamed += [("query_down", "q_a_proj"), ("query_norm", "q_a_layernorm")]
    for name, other in renamed:
        yield from _renamed(f"{ours}.{name}", f"{theirs}.{other}", ("weight",))


def _expert_parts(config: DecoderConfig, ours: str, theirs: str) -> Iterator[_Part]:
    experts = config.experts
    assert experts is not None
    yield _Part(f"{ours}.router.weight", (f"{theirs}.gate.weight",))
    if experts.has_bias:
        yield _Part(f"{ours}.selection_bias", (f"{theirs}.gate.e_score_correction_bias",))
    each = [f"{theirs}.experts.{expert}" for expert in range(experts.routed)]
    yield _Part(
        f"{ours}.experts.gate_up",
        tuple(f"{expert}.{name}_proj.weight" for expert in each for name in ("gate", "up")),
        rows=(experts.width,) * (2 * experts.routed),
        stack=experts.routed,
    )
    yield _Part(
        f"{ours}.experts.down",
        tuple(f"{expert}.down_proj.weight" for expert in each),
        rows=(config.width,) * experts.routed,
        stack=experts.routed,
    )
    if experts.shared:
        width = experts.shared * experts.width
        yield from _swiglu_parts(f"{ours}.shared", f"{theirs}.shared_experts", width)


def _swiglu_parts(ours: str, theirs: str, width: int) -> Iterator[_Part]:
    yield _Part(
        f"{ours}.gate_up.weight",
        tuple(f"{theirs}.{name}_proj.weight" for name in ("gate", "up")),
        rows=(width, width),
    )
    yield _Part(f"{ours}.down.weight", (f"{theirs}.down_proj.weight",))


def _renamed(ours: str, theirs: str, kinds: Iterable[str]) -> Iterator[_Part]:
    for kind in kinds:
        yield _Part(f"{ours}.{kind}", (f"{theirs}.{kind}",))


def _blank_state(config: DecoderConfig, classes: int | None) -> State:
    """The state dict of a model of this shape on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        generator = torch.Generator(device="cpu")
        if classes is None:
            return dict(DecoderLM(config, generator).state_dict())
        return dict(DecoderClassifier(Decoder(config, generator), classes, generator).state_dict())


def _drop_tied_output(given: State, kind: str) -> None:
    output, embedding = (
        ("embed_out.weight", "gpt_neox.embed_in.weight")
        if kind == "gpt_neox"
        else ("lm_head.weight", "model.embed_tokens.weight")
    )
    if output in given and embedding in given:
        if not torch.equal(given[output], given[embedding]):
            raise ValueError(
                f"the config ties the embeddings, but {output} differs from {embedding}."
            )
        del given[output]


def _require_same(
    given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str
) -> None:
    problems = [
        *(f"missing {name}" for name in expected if name not in given),
        *(f"unknown {name}" for name in given if name not in expected),
        *(
            f"{name} has shape {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in given and given[name].shape != tensor.shape
        ),
    ]
    if problems:
        raise ValueError(f"not {what}: {'; '.join(problems)}.")
