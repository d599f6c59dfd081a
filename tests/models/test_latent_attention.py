"""Both paths of latent attention give the same, however the context came about."""

from __future__ import annotations

import pytest
import torch

from models import latent_paths
from models.contiguous_cache import ContiguousCache
from models.counting import DEEPSEEK, cached_numbers
from models.decoder import DecoderLM
from models.decoder_config import deepseek_config
from models.expert_config import ExpertsConfig
from models.initialise import initialise
from models.key_value_attention import AttentionInputs
from models.latent_attention import LatentAttention
from models.latent_config import LatentConfig
from models.latent_paths import (
    LatentWidths,
    absorbed,
    absorbed_flops,
    blocks,
    expanded,
    expanded_flops,
    is_absorbed_cheaper,
)
from models.rotary import rotary_tables

# d_n, d_R, d_v, d_c, h
WIDTHS = [(8, 4, 8, 16, 2), (4, 8, 20, 12, 3), (16, 2, 5, 6, 1), (32, 48, 32, 64, 4)]


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def module(dtype: torch.dtype, query_width: int = 0) -> LatentAttention:
    config = deepseek_config(
        vocab_size=2,
        width=48,
        layers=1,
        heads=4,
        head_width=12,
        feed_forward_width=8,
        latent=LatentConfig(width=24, rotary_width=8, value_width=10, query_width=query_width),
        experts=None,
    )
    attention = LatentAttention(config)
    initialise(attention, std=0.1, generator=torch.Generator().manual_seed(0))
    return attention.to(dtype)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("prefix", [0, 1, 17, 1000])
@pytest.mark.parametrize("widths", WIDTHS)
def test_absorbed_equals_expanded_in_outputs_and_gradients(
    widths: tuple[int, int, int, int, int], prefix: int, dtype: torch.dtype, atol: float
) -> None:
    nope, rotary, value, latent, heads = widths
    new = 3
    given = {
        "q": draw(2, new, heads, rotary + nope, dtype=dtype),
        "entries": draw(2, prefix + new, latent + rotary, dtype=dtype, seed=1),
        "up": draw(heads, nope + value, latent, dtype=dtype, seed=2) / latent**0.5,
    }
    weight = draw(2, new, heads, value, dtype=dtype, seed=3)
    results = {}
    for path in (absorbed, expanded):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
        out = path(*leaves.values(), nope=nope, scale=(nope + rotary) ** -0.5, workspace=5000)
        (out * weight).sum().backward()
        with torch.no_grad():
            fused = path(*given.values(), nope=nope, scale=(nope + rotary) ** -0.5)
        torch.testing.assert_close(out, fused, atol=atol, rtol=0)
        results[path] = [out, *(leaf.grad for leaf in leaves.values())]
    for one, other in zip(results[absorbed], results[expanded], strict=True):
        torch.testing.assert_close(
            one, other, atol=atol * max(1.0, float(other.detach().abs().max())), rtol=0
        )


@pytest.mark.parametrize("query_width", [0, 20])
@pytest.mark.parametrize("chunk", [1, 5, 64, 150])
@pytest.mark.parametrize("workspace", [latent_paths.WORKSPACE, 20_000])
def test_decode_and_chunks_equal_one_prefill(query_width: int, chunk: int, workspace: int) -> None:
    attention = module(torch.float32, query_width)
    attention.workspace = workspace
    tokens = 150
    x = draw(2, tokens, 48, dtype=torch.float32)
    tables = rotary_tables(
        torch.arange(tokens)[None], rotary_width=8, base=1e4, dtype=torch.float32
    )
    with torch.no_grad():
        whole = attention(x, AttentionInputs(tables, None))
        entries = attention.entries(x, tables)
        q = attention.queries(x, tables)
        for start in range(0, tokens, chunk):
            stop = min(start + chunk, tokens)
            out = attention.attend(q[:, start:stop], entries[:, :stop])
            torch.testing.assert_close(out, whole[:, start:stop], atol=1e-5, rtol=0)


def test_a_mask_means_the_same_on_both_paths() -> None:
    mask = torch.zeros(2, 1, 4, 300)
    mask[0, :, :, :13] = float("-inf")
    mask[:, :, torch.ones(4, 300).triu(297).bool()] = float("-inf")
    q, entries = draw(2, 4, 3, 12, dtype=torch.float32), draw(2, 300, 20, dtype=torch.float32)
    up = draw(3, 16, 16, dtype=torch.float32) / 4
    one, other = (
        path(q, entries, up, nope=8, scale=0.3, mask=mask, workspace=6000)
        for path in (absorbed, expanded)
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    alone = absorbed(q[:1], entries[:1, 13:], up, nope=8, scale=0.3)
    torch.testing.assert_close(one[:1], alone, atol=1e-5, rtol=0)


def test_the_switch_is_where_the_costs_are_equal() -> None:
    widths = LatentWidths(heads=128, nope=128, rotary=64, value=128, latent=512)
    long = 10**9
    assert is_absorbed_cheaper(widths, 170, long)
    assert not is_absorbed_cheaper(widths, 171, long)
    assert is_absorbed_cheaper(widths, 1, 64)
    # Without a prefix there is nothing to save.
    assert not is_absorbed_cheaper(widths, 512, 512)
    equal = LatentWidths(heads=1, nope=2, rotary=2, value=2, latent=4)
    assert expanded_flops(equal, 4, 12) == 2 * 12 * 4 * 4 + 2 * 4 * 12 * 6
    assert absorbed_flops(equal, 4, 12) == 2 * 4 * 4 * 4 + 2 * 4 * 12 * 10


def test_blocks_cover_every_key_once() -> None:
    for prefix, rest, length in ((0, 7, 1000), (500, 3, 128), (1000, 300, 130)):
        cuts = blocks(prefix, rest, length)
        assert [key for start, stop in cuts for key in range(start, stop)] == list(
            range(prefix + rest)
        )
        assert all(stop - start <= max(length, 128) for start, stop in cuts)


def test_expansion_stays_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    original = latent_paths.expand

    def watched(*args: torch.Tensor | int) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = original(*args)  # type: ignore[arg-type]
        held.append(key.numel() * 2)
        return key, value

    monkeypatch.setattr(latent_paths, "expand", watched)
    q, entries = draw(1, 200, 4, 12, dtype=torch.float32), draw(1, 4000, 20, dtype=torch.float32)
    up = draw(4, 16, 16, dtype=torch.float32)
    with torch.no_grad():
        expanded(q, entries, up, nope=8, scale=0.3, workspace=50_000)
    assert len(held) > 4
    assert max(held) <= 50_000


def test_cache_of_the_released_models() -> None:
    assert {name: cached_numbers(config) for name, config in DEEPSEEK.items()} == {
        "v2-lite": 15_552,
        "v2": 34_560,
        "v3": 35_136,
    }


@pytest.mark.parametrize("chunks", [[40], [1] * 40, [5, 30, 1, 1, 3]])
def test_the_cached_decoder_gives_the_logits_of_one_forward(chunks: list[int]) -> None:
    config = deepseek_config(
        vocab_size=50,
        width=32,
        layers=3,
        heads=2,
        head_width=8,
        feed_forward_width=48,
        latent=LatentConfig(16, 8, 8),
        experts=ExpertsConfig(routed=4, shared=1, per_token=2, width=16, dense_layers=1),
        initial_std=0.1,
    )
    model = DecoderLM(config, torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))
    cache = ContiguousCache(model.cache_layouts(), sequences=2, capacity=40)
    assert cache.bytes_per_token == 4 * cached_numbers(config) == 4 * 3 * 24
    with torch.inference_mode():
        whole = model(ids)
        start = 0
        for chunk in chunks:
            new = ids[:, start : start + chunk]
            logits = model.cached(new.flatten(), cache.step([chunk, chunk]))
            torch.testing.assert_close(
                logits.view(2, chunk, -1), whole[:, start : start + chunk], atol=1e-5, rtol=0
            )
            start += chunk


def test_sequences_of_different_lengths_step_together() -> None:
    config = deepseek_config(
        vocab_size=50,
        width=32,
        layers=2,
        heads=2,
        head_width=8,
        feed_forward_width=48,
        latent=LatentConfig(16, 8, 8),
        experts=None,
        initial_std=0.1,
    )
    model = DecoderLM(config, torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(0))
    cache = ContiguousCache(model.cache_layouts(), sequences=3, capacity=20)
    lengths = [4, 9, 15]
    with torch.inference_mode():
        first = torch.cat([ids[row, :length] for row, length in enumerate(lengths)])
        model.cached(first, cache.step(lengths))
        last = torch.stack([ids[row, length] for row, length in enumerate(lengths)])
        logits = model.cached(last, cache.step([1, 1, 1]))
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, : length + 1])[0, -1]
            torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=0)
