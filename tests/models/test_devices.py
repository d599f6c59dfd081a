"""Whatever a model makes while it computes is made on the model's own device.

The default device is one that no number can be read from: a tensor that is made without saying
where lands there, and meets those of the model no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, deepseek_config, gpt_neox_config, llama_config
from models.expert_config import ExpertsConfig
from models.hybrid_config import HybridConfig
from models.latent_config import LatentConfig
from models.paged_lm import PagedLM
from models.planned_lm import PlannedLM, generating
from models.positions import PositionScheme
from models.yarn import YarnConfig

L = 16
IDS = [7 * place % 256 for place in range(60)]
SCHEMES = (
    PositionScheme("rope"),
    PositionScheme("pi", interval=4.0),
    PositionScheme("ntk_mixed", interval=4.0),
    PositionScheme("yarn", interval=4.0),
    PositionScheme("self_extend", window=6, group=4),
    PositionScheme("dca"),
    PositionScheme("rerope", window=6, log_n="post"),
    PositionScheme("leaky_rerope", window=6, interval=4.0),
    PositionScheme("nope"),
)
SHAPES = {
    "neox": gpt_neox_config(vocab_size=256, width=32, layers=2, heads=4, max_positions=64),
    "llama": llama_config(
        vocab_size=256,
        width=32,
        layers=2,
        heads=4,
        key_value_heads=2,
        feed_forward_width=48,
        max_positions=L,
    ),
    "llama with windowed layers": llama_config(
        vocab_size=256,
        width=32,
        layers=2,
        heads=4,
        key_value_heads=2,
        feed_forward_width=48,
        max_positions=L,
        hybrid=HybridConfig(10, 1),
    ),
    "deepseek with a YaRN of its own": deepseek_config(
        vocab_size=256,
        width=64,
        layers=2,
        heads=4,
        head_width=16,
        feed_forward_width=48,
        latent=LatentConfig(width=32, rotary_width=16, value_width=16),
        experts=None,
        max_positions=64,
        yarn=YarnConfig(factor=4.0, original_positions=L),
    ),
    "deepseek": deepseek_config(
        vocab_size=256,
        width=64,
        layers=2,
        heads=4,
        head_width=16,
        feed_forward_width=48,
        latent=LatentConfig(width=32, rotary_width=16, value_width=16),
        experts=ExpertsConfig(routed=8, shared=1, per_token=2, width=16, dense_layers=1),
        max_positions=L,
    ),
}


@dataclass(frozen=True)
class Part:
    tokens: list[int]
    past: int
    pages: list[int]
    slot: int = 0
    is_resumed: bool = False
    every_row: bool = False


def steps(model: PagedLM) -> torch.Tensor:
    """A prefill of two, and a token for each."""
    first = [Part(IDS[:20], 0, [3, 1]), Part(IDS[20:30], 0, [5], slot=1, every_row=True)]
    then = [Part(IDS[20:21], 20, [3, 1]), Part(IDS[30:31], 10, [5], slot=1)]
    return torch.cat([model.forward(first), model.forward(then)])


def paged(model: DecoderLM | PlannedLM) -> PagedLM:
    return PagedLM(model, vocab_size=256, context=64, pages=12, sequences=2)


def decoder(shape: DecoderConfig) -> DecoderLM:
    return DecoderLM(shape, torch.Generator().manual_seed(0)).requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_makes_nothing_elsewhere(shape: str) -> None:
    model = decoder(SHAPES[shape])
    expected = steps(paged(model))
    other = paged(model)
    with torch.device("meta"):
        found = steps(other)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", ["llama", "llama with windowed layers", "deepseek"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_nor_does_it_under_any_position_scheme(shape: str, scheme: PositionScheme) -> None:
    model = generating(decoder(SHAPES[shape]), scheme, train_length=L, longest=64)
    expected = steps(paged(model))
    ids = torch.tensor([IDS[:40], IDS[10:50]])
    whole = model(ids)
    other = paged(model)
    with torch.device("meta"):
        found, read = steps(other), model(ids)
    assert torch.equal(found, expected)
    assert torch.equal(read, whole)


@pytest.mark.parametrize("shape", ["llama", "llama with windowed layers"])
def test_padded_rows_and_documents_are_masked_on_the_device(shape: str) -> None:
    model = decoder(SHAPES[shape])
    ids = torch.tensor([IDS[:40], IDS[10:50]])
    mask, documents = torch.ones(2, 40, dtype=torch.bool), torch.zeros(2, 40, dtype=torch.int64)
    mask[0, 30:] = False
    documents[:, 15:] = 1
    expected = model(ids, attention_mask=mask), model(ids, document_ids=documents)
    with torch.device("meta"):
        found = model(ids, attention_mask=mask), model(ids, document_ids=documents)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
