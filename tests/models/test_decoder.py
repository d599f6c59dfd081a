"""What a decoder must do whatever its shape: causality, padding, documents, checkpointing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.decoder import Decoder, DecoderLM
from models.decoder_config import DecoderConfig, gpt_neox_config, llama_config
from models.losses import next_token_loss

NEOX = gpt_neox_config(vocab_size=97, width=64, layers=3, heads=4)
LLAMA = llama_config(
    vocab_size=97, width=48, layers=3, heads=6, key_value_heads=2, feed_forward_width=80
)
TIED = dataclasses.replace(LLAMA, tied_embeddings=True)
SHAPES = pytest.mark.parametrize("config", [NEOX, LLAMA, TIED], ids=["neox", "llama", "tied"])


def model_of(config: DecoderConfig, seed: int = 0) -> DecoderLM:
    """A model with weights large enough that every path matters to the logits."""
    return DecoderLM(
        dataclasses.replace(config, initial_std=0.2), torch.Generator().manual_seed(seed)
    )


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(seed))


@SHAPES
def test_later_tokens_do_not_change_earlier_hidden_states(config: DecoderConfig) -> None:
    decoder = model_of(config).decoder
    ids = tokens(2, 20)
    changed = ids.clone()
    changed[:, 12:] = tokens(2, 8, seed=2)
    torch.testing.assert_close(decoder(ids)[:, :12], decoder(changed)[:, :12], atol=1e-6, rtol=0)
    assert not torch.allclose(decoder(ids)[:, 12:], decoder(changed)[:, 12:], atol=1e-2)


@SHAPES
@pytest.mark.parametrize(("left", "right"), [(0, 37), (37, 0), (20, 17)])
def test_padding_does_not_change_logits_of_real_tokens(
    config: DecoderConfig, left: int, right: int
) -> None:
    model = model_of(config)
    ids = tokens(3, 11)
    padded = torch.nn.functional.pad(ids, (left, right), value=5)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
    padded_logits = model(padded, attention_mask=mask)
    assert padded_logits.isfinite().all()
    torch.testing.assert_close(padded_logits[:, left : left + 11], model(ids), atol=1e-5, rtol=1e-5)


@SHAPES
def test_logits_do_not_depend_on_batch_order_or_neighbours(config: DecoderConfig) -> None:
    model = model_of(config)
    rows = [tokens(1, length, seed=length)[0] for length in (4, 9, 15)]
    alone = [model(row[None])[0] for row in rows]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        ids = torch.full((3, 15), 7)
        mask = torch.zeros(3, 15, dtype=torch.long)
        for place, row in enumerate(order):
            length = len(rows[row])
            # Rows padded on the left, on the right, and on both sides share a batch.
            start = (0, 15 - length, (15 - length) // 2)[place]
            ids[place, start : start + length] = rows[row]
            mask[place, start : start + length] = 1
        logits = model(ids, attention_mask=mask)
        for place, row in enumerate(order):
            torch.testing.assert_close(
                logits[place][mask[place].bool()], alone[row], atol=1e-5, rtol=1e-5
            )


@SHAPES
def test_packed_documents_give_the_logits_of_separate_forwards(config: DecoderConfig) -> None:
    model = model_of(config)
    lengths = [5, 9, 2]
    ids = tokens(2, sum(lengths))
    document_ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).repeat(2, 1)
    packed = model(ids, document_ids=document_ids)
    apart = torch.cat([model(piece) for piece in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-5)


@SHAPES
def test_changing_one_document_never_changes_another(config: DecoderConfig) -> None:
    model = model_of(config)
    ids = tokens(1, 16)
    document_ids = torch.tensor([[0] * 5 + [1] * 6 + [2] * 5])
    changed = ids.clone()
    changed[:, 5:11] = tokens(1, 6, seed=3)
    before = model(ids, document_ids=document_ids)
    after = model(changed, document_ids=document_ids)
    outside = document_ids[0] != 1
    assert torch.equal(before[:, outside], after[:, outside])
    assert not torch.allclose(before[:, ~outside], after[:, ~outside], atol=1e-2)
    plain = model(ids), model(changed)
    assert not torch.allclose(plain[0][:, 11:], plain[1][:, 11:], atol=1e-2)


def test_documents_with_padding_give_the_logits_of_separate_forwards() -> None:
    model = model_of(NEOX)
    first, second = tokens(1, 4), tokens(1, 6, seed=2)
    ids = torch.cat([torch.full((1, 3), 9), first, second, torch.full((1, 2), 9)], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 10 + [0] * 2])
    document_ids = torch.tensor([[0] * 7 + [1] * 8])
    logits = model(ids, attention_mask=mask, document_ids=document_ids)
    torch.testing.assert_close(logits[:, 3:7], model(first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[:, 7:13], model(second), atol=1e-5, rtol=1e-5)
    assert logits.isfinite().all()


@SHAPES
def test_only_relative_positions_matter(config: DecoderConfig) -> None:
    model = model_of(config)
    ids = tokens(2, 10)
    shifted = torch.arange(10)[None] + 40
    torch.testing.assert_close(model(ids, position_ids=shifted), model(ids), atol=1e-4, rtol=1e-4)
    stretched = torch.arange(10)[None] * 3
    assert not torch.allclose(model(ids, position_ids=stretched), model(ids), atol=1e-2)


@SHAPES
def test_activation_checkpointing_gives_equal_gradients(config: DecoderConfig) -> None:
    ids = tokens(2, 12)
    gradients = []
    for switch in (False, True):
        model = model_of(config)
        model.decoder.checkpoint_activations = switch
        next_token_loss(model, ids, ids).mean.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name


def test_grouped_query_attention_equals_repeated_key_value_heads() -> None:
    grouped = model_of(LLAMA)
    full = model_of(dataclasses.replace(LLAMA, key_value_heads=LLAMA.heads))
    weights = grouped.state_dict()
    share, width = LLAMA.heads // LLAMA.key_value_heads, LLAMA.head_width
    for name in [name for name in weights if "query_key_value" in name]:
        q, k, v = weights[name].split([LLAMA.heads * width] + 2 * [2 * width])
        weights[name] = torch.cat(
            [q, *(t.view(2, width, -1).repeat_interleave(share, 0).flatten(0, 1) for t in (k, v))]
        )
    full.load_state_dict(weights)
    ids = tokens(2, 9)
    torch.testing.assert_close(full(ids), grouped(ids), atol=1e-5, rtol=1e-5)


def test_tied_embeddings_are_one_parameter_with_both_gradients() -> None:
    model = model_of(TIED)
    assert "output_embedding.weight" not in model.state_dict()
    ids = tokens(1, 8)
    torch.testing.assert_close(
        model(ids), model.decoder(ids) @ model.decoder.embedding.weight.T, atol=1e-5, rtol=1e-5
    )
    untied = model_of(LLAMA)
    untied.load_state_dict(
        model.state_dict() | {"output_embedding.weight": model.decoder.embedding.weight}
    )
    next_token_loss(model, ids, ids).total.backward()
    next_token_loss(untied, ids, ids).total.backward()
    expected = untied.decoder.embedding.weight.grad + untied.output_embedding.weight.grad
    torch.testing.assert_close(model.decoder.embedding.weight.grad, expected)


def test_weights_come_from_the_generator_and_from_nothing_else() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = DecoderLM(NEOX, torch.Generator().manual_seed(3)).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    second = DecoderLM(NEOX, torch.Generator().manual_seed(3)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, tensor in first.items():
        if name.endswith("bias"):
            assert not tensor.any()
        elif "norm" in name:
            assert (tensor == 1).all()
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
            assert tensor.mean().item() == pytest.approx(0.0, abs=0.002)


def test_model_built_on_the_meta_device_takes_weights_by_assignment() -> None:
    source = model_of(NEOX)
    with torch.device("meta"):
        model = DecoderLM(NEOX, torch.Generator(device="cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(source.state_dict(), assign=True)
    ids = tokens(1, 6)
    assert torch.equal(model(ids), source(ids))


def test_bfloat16_model_stays_close_to_float32() -> None:
    model = DecoderLM(NEOX, torch.Generator().manual_seed(0))
    ids = tokens(2, 16)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    full = model(ids, attention_mask=mask)
    half = model.bfloat16()(ids, attention_mask=mask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.02, rtol=0.05)


def test_decoder_alone_gives_hidden_states_of_its_width() -> None:
    decoder = Decoder(NEOX, torch.Generator().manual_seed(0))
    assert decoder(tokens(2, 5)).shape == (2, 5, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_value_heads": 4}, r"heads \(6\) must be a multiple of key_value_heads \(4\)"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"rotary_fraction": 0.4}, r"rotary_fraction \(0.4\) of head_width \(8\)"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LLAMA, **change)


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width \(50\) must be a multiple of heads \(4\)"):
        gpt_neox_config(vocab_size=10, width=50, layers=1, heads=4)
