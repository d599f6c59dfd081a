"""A model with its pool of pages: the rows that an engine asks for, in its order and precision."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from tiny_lm import tiny_decoder, tiny_lm

from models.paged_lm import PagedLM


@dataclass(frozen=True)
class Part:
    tokens: list[int]
    past: int
    pages: list[int]
    slot: int = 0
    is_resumed: bool = False
    every_row: bool = False


IDS = [int(one) for one in torch.randint(256, (40,), generator=torch.Generator().manual_seed(0))]


def test_logits_come_in_order_the_last_row_or_every_row() -> None:
    decoder, model = tiny_decoder(), tiny_lm(pages=12)
    first = Part(IDS[:20], 0, [3, 1])
    whole = Part(IDS[20:30], 0, [5], every_row=True)
    logits = model.forward([first, whole])
    with torch.inference_mode():
        one, two = (decoder(torch.tensor([part.tokens]))[0] for part in (first, whole))
    assert logits.shape == (11, 256)
    torch.testing.assert_close(logits[0], one[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1:], two, atol=1e-5, rtol=1e-5)
    later = replace(first, tokens=IDS[20:21], past=20)
    with torch.inference_mode():
        expected = decoder(torch.tensor([IDS[:21]]))[0, -1]
    torch.testing.assert_close(model.forward([later])[0], expected, atol=1e-5, rtol=1e-5)
    # Keys and values of 2 layers, 2 heads of 8 numbers, 4 bytes each.
    assert model.bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_cleared_pages_hold_nothing_of_before() -> None:
    model = tiny_lm(pages=2)
    model.forward([Part(IDS[:16], 0, [1])])
    model.clear([1])
    assert not any(flat.any() for layer in model.cache.kept for flat in layer.values())


def test_a_model_in_bfloat16_has_a_cache_of_half_the_size() -> None:
    half = PagedLM(
        tiny_decoder().bfloat16(),
        vocab_size=256,
        context=100,
        pages=4,
        sequences=1,
        dtype=torch.bfloat16,
    )
    assert 2 * half.bytes_per_token == tiny_lm().bytes_per_token
    logits = half.forward([Part(IDS[:30], 0, [0, 1])])
    assert logits.dtype == torch.float32
    with torch.inference_mode():
        expected = tiny_decoder()(torch.tensor([IDS[:30]]))[0, -1]
    torch.testing.assert_close(logits[0], expected, atol=0.1, rtol=0.1)


def test_a_sequence_with_too_few_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens need more pages"):
        tiny_lm().forward([Part(IDS[:17], 0, [0])])
