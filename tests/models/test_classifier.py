"""The classifier: pooling by mask, padding, causality, and the link to the language model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models.classifier import DecoderClassifier, Pooling, last_token, token_mean
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, gpt_neox_config, llama_config

NEOX = gpt_neox_config(vocab_size=83, width=32, layers=2, heads=4)
LLAMA = llama_config(
    vocab_size=83, width=32, layers=2, heads=4, key_value_heads=2, feed_forward_width=64
)
SHAPES = pytest.mark.parametrize("config", [NEOX, LLAMA], ids=["neox", "llama"])
POOLINGS = pytest.mark.parametrize("pooling", ["last", "mean"])


def language_model(config: DecoderConfig) -> DecoderLM:
    return DecoderLM(dataclasses.replace(config, initial_std=0.2), torch.Generator().manual_seed(0))


def classifier(config: DecoderConfig, pooling: Pooling = "last") -> DecoderClassifier:
    return DecoderClassifier(
        language_model(config).decoder, 9, torch.Generator().manual_seed(1), pooling=pooling
    )


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(83, (rows, length), generator=torch.Generator().manual_seed(seed))


@SHAPES
@POOLINGS
def test_logits_do_not_depend_on_padding(config: DecoderConfig, pooling: Pooling) -> None:
    model = classifier(config, pooling)
    ids = tokens(3, 14)
    alone = torch.cat([model(row[None]) for row in ids])
    for left, right in ((0, 37), (37, 0), (15, 22)):
        mask = F.pad(torch.ones_like(ids), (left, right))
        padded = F.pad(ids, (left, right), value=2)
        logits = model(padded, attention_mask=mask)
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
        for order in ([2, 1, 0], [1, 2, 0]):
            torch.testing.assert_close(
                model(padded[order], attention_mask=mask[order]),
                alone[order],
                atol=1e-5,
                rtol=1e-5,
            )


@SHAPES
def test_tokens_after_the_pooled_position_do_not_matter(config: DecoderConfig) -> None:
    # In float64: with a mask and without, other kernels sum in another order.
    model = classifier(config).double()
    ids = tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    changed = ids.clone()
    changed[:, 8:] = tokens(2, 4, seed=5)
    torch.testing.assert_close(
        last_token(model.decoder(ids, attention_mask=mask), mask),
        last_token(model.decoder(changed, attention_mask=mask), mask),
        atol=1e-12,
        rtol=0,
    )
    torch.testing.assert_close(
        last_token(model.decoder(ids, attention_mask=mask), mask),
        model.decoder(ids[:, :8])[:, -1],
        atol=1e-12,
        rtol=0,
    )


def test_pooling_reads_the_mask_and_never_the_pad_id() -> None:
    model = classifier(NEOX)
    pad = 2
    ids = tokens(1, 6)
    ids[0, -1] = pad
    padded = F.pad(ids, (0, 4), value=pad)
    mask = F.pad(torch.ones_like(ids), (0, 4))
    torch.testing.assert_close(model(padded, attention_mask=mask), model(ids), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(ids), model(ids[:, :-1]), atol=1e-3)


@SHAPES
def test_head_made_of_output_embeddings_gives_language_model_logits(
    config: DecoderConfig,
) -> None:
    lm = language_model(config)
    class_tokens = torch.tensor([3, 80, 17, 42])
    model = DecoderClassifier(lm.decoder, 4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.head.weight.copy_(lm.output_embedding.weight[class_tokens])
    ids = tokens(3, 10)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    last = torch.tensor([9, 5, 9])
    expected = lm(ids, attention_mask=mask)[torch.arange(3), last][:, class_tokens]
    torch.testing.assert_close(model(ids, attention_mask=mask), expected, atol=1e-5, rtol=1e-5)


def test_mean_pooling_averages_real_tokens_only() -> None:
    hidden = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[0, 1, 1, 0]])
    assert token_mean(hidden, mask).tolist() == [[4.5, 5.5, 6.5]]
    assert token_mean(hidden, None).tolist() == [[4.5, 5.5, 6.5]]


def test_head_has_no_bias_and_small_weights_and_trains_the_decoder_too() -> None:
    config = dataclasses.replace(NEOX, width=64)
    model = DecoderClassifier(
        DecoderLM(
            dataclasses.replace(config, head_width=16, feed_forward_width=256),
            torch.Generator().manual_seed(0),
        ).decoder,
        640,
        torch.Generator().manual_seed(1),
    )
    assert model.head.bias is None
    assert model.head.weight.shape == (640, 64)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    model(tokens(2, 5)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
