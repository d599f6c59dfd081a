"""The cache: however a sequence is cut into steps and whoever steps with it, the same numbers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
import torch

from models.cache import Kept, LayerLayout, Ring
from models.contiguous_cache import ContiguousCache
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, gpt_neox_config, llama_config
from models.hybrid_config import HybridConfig
from models.paged_cache import PAGE_TOKENS, PagedCache, PagedSequence
from models.ragged import groups_of

NEOX = gpt_neox_config(vocab_size=97, width=64, layers=3, heads=4)
LLAMA = llama_config(
    vocab_size=97, width=48, layers=3, heads=6, key_value_heads=2, feed_forward_width=80
)
TIED = dataclasses.replace(LLAMA, tied_embeddings=True)
HYBRID = dataclasses.replace(LLAMA, hybrid=HybridConfig(20, 1))
SHAPES = pytest.mark.parametrize(
    "config", [NEOX, LLAMA, TIED, HYBRID], ids=["neox", "llama", "tied", "hybrid"]
)


def model_of(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> DecoderLM:
    """Weights large enough that attention is far from even."""
    shape = dataclasses.replace(config, initial_std=0.1)
    return DecoderLM(shape, torch.Generator().manual_seed(0)).to(dtype)


def tokens(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(97, (length,), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    tolerance = 1e-5 if a.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@SHAPES
@DTYPES
@pytest.mark.parametrize("chunk", [1, 5, 64, 150])
@torch.inference_mode()
def test_chunks_give_the_logits_of_one_forward(
    config: DecoderConfig, chunk: int, dtype: torch.dtype
) -> None:
    model, ids = model_of(config, dtype), tokens(150)
    expected = model(ids[None])[0]
    contiguous = ContiguousCache(model.cache_layouts(), capacity=150, dtype=dtype)
    paged = PagedCache(model.cache_layouts(), pages=12, dtype=dtype)
    pages = [7, 8, 9, 2, 3, 0, 1, 11, 10, 5]
    for first in range(0, 150, chunk):
        piece = ids[first : first + chunk]
        close(model.cached(piece, contiguous.step([len(piece)])), expected[first : first + chunk])
        step = paged.step([PagedSequence(pages, past=first, new=len(piece))])
        close(model.cached(piece, step), expected[first : first + chunk])


@SHAPES
@DTYPES
@torch.inference_mode()
def test_ragged_steps_give_each_sequence_its_own_logits(
    config: DecoderConfig, dtype: torch.dtype
) -> None:
    """Prompts in chunks beside sequences that decode, in any order, on one pool of pages."""
    model, draw = model_of(config, dtype), random.Random(0)
    lengths = [3, 40, 90, 170, 64]
    ids = [tokens(length, seed=length) for length in lengths]
    expected = [model(one[None])[0] for one in ids]
    cache = PagedCache(model.cache_layouts(), pages=60, dtype=dtype)
    for layer in cache.kept:
        for flat in layer.values():
            flat.fill_(50.0)  # what earlier owners left behind
    numbers = list(range(60))
    draw.shuffle(numbers)
    tables = [numbers[11 * index : 11 * index + 11] for index in range(5)]
    past = [0] * 5
    while any(p < n for p, n in zip(past, lengths, strict=True)):
        open_ones = [index for index in range(5) if past[index] < lengths[index]]
        draw.shuffle(open_ones)
        new = [
            min(draw.choice([1, 1, 1, 2, 17]), lengths[index] - past[index]) for index in open_ones
        ]
        step = cache.step(
            [
                PagedSequence(tables[index], past[index], m)
                for index, m in zip(open_ones, new, strict=True)
            ]
        )
        parts = [
            ids[index][past[index] : past[index] + m]
            for index, m in zip(open_ones, new, strict=True)
        ]
        logits = model.cached(torch.cat(parts), step, step.last_rows)
        for index, m, row in zip(open_ones, new, logits, strict=True):
            past[index] += m
            close(row, expected[index][past[index] - 1])


@torch.inference_mode()
def test_a_shared_page_serves_two_sequences_with_one_beginning() -> None:
    model = model_of(LLAMA)
    beginning, first, second = tokens(32), tokens(9, seed=2), tokens(20, seed=3)
    cache = PagedCache(model.cache_layouts(), pages=6)
    model.cached(beginning, cache.step([PagedSequence([4, 1], 0, 32)]))
    step = cache.step([PagedSequence([4, 1, 0], 32, 9), PagedSequence([4, 1, 5, 2], 32, 20)])
    logits = model.cached(torch.cat([first, second]), step, step.last_rows)
    close(logits[0], model(torch.cat([beginning, first])[None])[0, -1])
    close(logits[1], model(torch.cat([beginning, second])[None])[0, -1])


@torch.inference_mode()
def test_a_contiguous_cache_is_read_without_a_copy() -> None:
    cache = ContiguousCache([LayerLayout((Kept("x", 3),))], sequences=2, capacity=8)
    step = cache.step([4, 4])
    layer = step.layer(0)
    layer.write("x", torch.arange(24.0).view(8, 3))
    (group,) = step.groups
    read = layer.read("x", group)
    assert read.shape == (2, 4, 3)
    assert read.untyped_storage().data_ptr() == cache.kept[0]["x"].untyped_storage().data_ptr()
    assert torch.equal(read, torch.arange(24.0).view(2, 4, 3))
    with pytest.raises(ValueError, match="12 tokens do not fit into 8"):
        cache.step([8, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_a_token_are_those_of_keys_and_values(dtype: torch.dtype) -> None:
    model = model_of(LLAMA)
    expected = 3 * 2 * 2 * 8 * dtype.itemsize
    paged = PagedCache(model.cache_layouts(), pages=5, dtype=dtype)
    assert paged.bytes_per_token == expected
    total = sum(flat.nbytes for layer in paged.kept for flat in layer.values())
    assert total == 5 * PAGE_TOKENS * expected
    contiguous = ContiguousCache(model.cache_layouts(), sequences=3, capacity=7, dtype=dtype)
    assert contiguous.bytes_per_token == expected
    ringed = PagedCache([LayerLayout((Kept("x", 4),), (Ring("r", 6, 10),))], pages=1, sequences=3)
    assert ringed.ring_bytes_per_sequence == 10 * 6 * 4


def groups_cover(past: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """(sequences, new) of each group, after checking that rows and sequences are covered once."""
    groups = groups_of(past, new)
    assert [i for g in groups for i in range(g.sequences.start, g.sequences.stop)] == list(
        range(len(past))
    )
    assert [i for g in groups for i in range(g.rows.start, g.rows.stop)] == list(range(sum(new)))
    assert [p for g in groups for p in g.past] == list(past)
    return [(g.size, g.new) for g in groups]


def test_groups_are_rectangles_of_neighbours() -> None:
    assert groups_cover([5, 6, 60], [1, 1, 1]) == [(3, 1)]
    assert groups_cover([5, 700, 690], [1, 1, 1]) == [(1, 1), (2, 1)]
    assert groups_cover([5, 0, 0, 3], [1, 8, 8, 8]) == [(1, 1), (2, 8), (1, 8)]


@pytest.mark.parametrize("paged", [False, True])
@torch.inference_mode()
def test_a_ring_holds_the_last_tokens_and_says_which(paged: bool) -> None:
    """Sequences of different lengths, chunks longer than the ring and single tokens."""
    length = 5
    layouts = [LayerLayout((), (Ring("r", 2, length),))]
    past = [0, 0, 0]
    contiguous = ContiguousCache(layouts, sequences=3, capacity=64)
    pool = PagedCache(layouts, pages=12, sequences=7)
    for new in ([3, 12, 1], [1, 1, 1], [4, 4, 4], [1, 1, 1], [9, 2, 6]):
        step = (
            pool.step(
                [
                    PagedSequence(range(4 * i, 4 * i + 4), past[i], new[i], slot=(6, 2, 3)[i])
                    for i in range(3)
                ]
            )
            if paged
            else contiguous.step(new)
        )
        layer = step.layer(0)
        rows = torch.cat(
            [torch.tensor([[i, p] for p in range(past[i], past[i] + new[i])]) for i in range(3)]
        ).float()
        for ends in (past, [p + m for p, m in zip(past, new, strict=True)]):
            for group in step.groups:
                view = layer.ring("r", group)
                for place, index in enumerate(range(3)[group.sequences]):
                    held = view.positions[place]
                    shown = {int(p) for p in held if p >= 0}
                    assert shown == set(range(max(0, ends[index] - length), ends[index]))
                    for slot, position in enumerate(held.tolist()):
                        if position >= 0:
                            assert view.rows[place, slot].tolist() == [index, position]
            layer.write_ring("r", rows)
        past = [p + m for p, m in zip(past, new, strict=True)]


@torch.inference_mode()
def test_a_stale_ring_is_filled_from_the_tokens_before() -> None:
    pool = PagedCache([LayerLayout((), (Ring("r", 1, 4),))], pages=2, sequences=2)
    step = pool.step([PagedSequence([0, 1], 22, 1, slot=1, ring_is_stale=True)])
    assert step.ring_is_stale == (True,)
    layer, (group,) = step.layer(0), step.groups
    layer.fill_ring("r", 0, torch.tensor([[19.0], [20.0], [21.0]]))
    before = layer.ring("r", group)
    assert sorted(before.positions[0].tolist()) == [18, 19, 20, 21]
    layer.write_ring("r", torch.tensor([[22.0]]))
    after = layer.ring("r", group)
    assert after.rows[0, :, 0].tolist() == after.positions[0].tolist() == [20, 21, 22, 19]


@torch.inference_mode()
def test_cleared_pages_hold_zeros() -> None:
    pool = PagedCache([LayerLayout((Kept("x", 1),))], pages=3)
    pool.kept[0]["x"].fill_(float("nan"))
    pool.clear([0, 2])
    assert pool.kept[0]["x"].isnan().sum() == PAGE_TOKENS
    assert pool.kept[0]["x"][PAGE_TOKENS : 2 * PAGE_TOKENS].isnan().all()


@SHAPES
@torch.inference_mode()
def test_bfloat16_steps_stay_close_to_float32(config: DecoderConfig) -> None:
    model, ids = DecoderLM(config, torch.Generator().manual_seed(0)), tokens(40)
    full = model(ids[None])[0]
    model = model.bfloat16()
    cache = ContiguousCache(model.cache_layouts(), capacity=40, dtype=torch.bfloat16)
    halves = [model.cached(ids[:33], cache.step([33]))]
    halves += [model.cached(ids[i : i + 1], cache.step([1])) for i in range(33, 40)]
    torch.testing.assert_close(torch.cat(halves).float(), full, atol=0.02, rtol=0.05)
