"""State dictionaries of `DecoderLM` and `DecoderClassifier` to and from Hugging Face names.

Pure functions on dictionaries of tensors. The layouts are those of the files that transformers
writes for `gpt_neox` and `llama` (causal language models and sequence classifiers). Three things
differ besides names: GPT-NeoX interleaves query, key and value per head, [heads, 3, head width],
where a `Decoder` stacks them, [3, heads, head width]; Llama keeps query, key, value and gate, up as
separate matrices where a `Decoder` fuses them; and a tied output embedding is not stored at all.
Both directions keep every bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from models.classifier import DecoderClassifier
from models.decoder import Decoder, DecoderLM
from models.decoder_config import DecoderConfig
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
        for name, tensor in state.items()
        if not name.endswith(_BUFFERS)
    }
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

    def split(self, tensor: torch.Tensor) -> State:
        if self.interleaved_heads:
            stacked = torch.unflatten(tensor, 0, (3, self.interleaved_heads, -1))
            return {self.theirs[0]: stacked.transpose(0, 1).flatten(0, 2).contiguous()}
        if self.rows:
            pieces = torch.split(tensor, list(self.rows))
            return {name: piece.clone() for name, piece in zip(self.theirs, pieces, strict=True)}
        return {self.theirs[0]: tensor}

    def join(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.interleaved_heads:
            interleaved = torch.unflatten(state[self.theirs[0]], 0, (self.interleaved_heads, 3, -1))
            return interleaved.transpose(0, 1).flatten(0, 2).contiguous()
        if self.rows:
            return torch.cat([state[name] for name in self.theirs])
        return state[self.theirs[0]]


def _parts(config: DecoderConfig, classes: int | None) -> Iterator[_Part]:
    family = _gpt_neox_parts if model_type(config) == "gpt_neox" else _llama_parts
    yield from family(config)
    if classes is not None:
        yield _Part("head.weight", (_HEAD,))
    elif not config.tied_embeddings:
        output = "embed_out.weight" if family is _gpt_neox_parts else "lm_head.weight"
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
