"""Windowed layers beside a dense reference, whole and by steps, and what schemes change of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from models.attention import CausalSelfAttention
from models.cache import LayerCache
from models.contiguous_cache import ContiguousCache
from models.counting import lm_training_flops
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, decoder_config_from, deepseek_config, llama_config
from models.hf_config import to_hf_config
from models.hybrid_config import HybridConfig
from models.key_value_attention import AttentionInputs
from models.latent_config import LatentConfig
from models.paged_cache import PAGE_TOKENS, PagedCache, PagedSequence
from models.planned_lm import PlannedLM, generating, plan_for
from models.positions import PositionScheme
from models.rotary import rotary_tables
from models.window_attention import window_tiles

TRAINED, N, WINDOW = 24, 83, 19
SCHEMES = [
    PositionScheme("rope", log_n="post"),
    PositionScheme("yarn", interval=4.0),
    PositionScheme("dca", log_n="post"),
    PositionScheme("self_extend", window=9, group=4),
    PositionScheme("rerope", window=9, log_n="post"),
    PositionScheme("leaky_rerope", window=9, interval=8.0, log_n="train"),
]
WINDOWS = [1, WINDOW, N - 1, N, N + 7]


def named(scheme: PositionScheme) -> str:
    return scheme.name


def config_of(
    hybrid: HybridConfig | None, *, layers: int = 3, shared: int = 2, width: int = 32
) -> DecoderConfig:
    return llama_config(
        vocab_size=61,
        width=width,
        layers=layers,
        heads=4,
        key_value_heads=shared,
        feed_forward_width=48,
        max_positions=TRAINED,
        hybrid=hybrid,
    )


def make_model(window: int = WINDOW, full: int = 1, layers: int = 3) -> DecoderLM:
    """Weights large enough that attention is far from even."""
    config = config_of(HybridConfig(window, full), layers=layers)
    shape = dataclasses.replace(config, initial_std=0.1)
    return DecoderLM(shape, torch.Generator().manual_seed(0))


def planned(model: DecoderLM, scheme: PositionScheme) -> PlannedLM:
    return generating(model, scheme, train_length=TRAINED, longest=96)


def draw(batch: int = 1) -> torch.Tensor:
    return torch.randint(61, (batch, N), generator=torch.Generator().manual_seed(N))


def dense(
    layer: CausalSelfAttention, x_BTd: torch.Tensor, window: int, segments_BT: torch.Tensor
) -> torch.Tensor:
    """Pair by pair: rotations as complex numbers, a full matrix of scores, and a mask."""
    heads, shared, width = layer.inner.heads, layer.inner.shared, layer.inner.key_width
    fused = layer.query_key_value(x_BTd).unflatten(-1, (-1, width))
    q, k, v = fused.split([heads, shared, shared], dim=2)
    at = torch.arange(x_BTd.shape[1])
    cos, sin = rotary_tables(at, rotary_width=width, base=1e4, dtype=torch.float64)
    turn = torch.complex(cos, sin)

    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        out = torch.complex(first, second) * turn
        return torch.cat((out.real, out.imag), dim=-1)

    group = heads // shared
    q, k, v = turned(q), *(x.repeat_interleave(group, 2) for x in (turned(k), v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(width)
    distance = at[:, None] - at
    seen = (distance >= 0) & (distance < window)
    seen = seen & (segments_BT[:, :, None] == segments_BT[:, None])
    weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    out: torch.Tensor = layer.output(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))
    return out


def make_layer(config: DecoderConfig, window: int) -> CausalSelfAttention:
    torch.manual_seed(0)
    layer = CausalSelfAttention(config, window).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def windowed(
    layer: CausalSelfAttention, x_BTd: torch.Tensor, segments_BT: torch.Tensor | None
) -> torch.Tensor:
    assert layer.inner.window is not None
    at = torch.arange(x_BTd.shape[1])[None]
    rotary = rotary_tables(at, rotary_width=layer.inner.key_width, base=1e4, dtype=x_BTd.dtype)
    tiles = window_tiles(layer.inner.window, x_BTd.shape[1], segments_BT, x_BTd)
    out: torch.Tensor = layer(x_BTd, AttentionInputs(rotary, None, tiles=tiles))
    return out


PACKED = torch.tensor([[0] * 31 + [1] * 2 + [2] * 50, [-1] * 12 + [0] * 71])
"""Packed documents; left padding."""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("window", WINDOWS)
def test_windowed_attention_and_its_gradients_equal_a_dense_reference(
    window: int, shared: int, packed: bool
) -> None:
    layer = make_layer(config_of(None, shared=shared), window)
    segments = PACKED if packed else torch.zeros(2, N, dtype=torch.long)
    x = torch.randn(2, N, 32, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(2, N, 32, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    expected = dense(layer, x, window, segments)
    found = windowed(layer, x, segments if packed else None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad((expected * slope).sum(), inputs)
    gradients = torch.autograd.grad((found * slope).sum(), inputs)
    for one, other in zip(gradients, wanted, strict=True):
        assert (one - other).norm() < 1e-10 * other.norm()


def test_gradients_agree_with_differences() -> None:
    layer = make_layer(config_of(None, width=8), window=3)
    x = torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: windowed(layer, x, None), (x,))


def test_every_pair_in_the_window_is_computed_once_and_no_other() -> None:
    for window in WINDOWS:
        tiles = window_tiles(window, N, None, torch.empty(0))
        seen = min(window, N)
        assert sum(tile.visible_pairs() for tile in tiles) == N * seen - seen * (seen - 1) // 2
    largest = max(
        tile.mask.shape[-1]
        for tile in window_tiles(WINDOW, 4096, None, torch.empty(0))
        if tile.mask is not None
    )
    assert largest < 128


@pytest.mark.parametrize(
    ("depth", "full", "layers"),
    [
        (24, 1, (12,)),
        (24, 2, (8, 16)),
        (3, 1, (2,)),
        (5, 1, (2,)),
        (6, 2, (2, 4)),
        (7, 3, (2, 4, 5)),
        (4, 3, (1, 2, 3)),
        (4, 0, ()),
    ],
)
def test_full_layers_are_evenly_spread(depth: int, full: int, layers: tuple[int, ...]) -> None:
    hybrid = HybridConfig(8, full)
    assert hybrid.full_layers(depth) == layers
    config = config_of(hybrid, layers=depth)
    assert [layer for layer in range(depth) if config.window(layer) is None] == list(layers)


def test_full_layers_all_differ_and_leave_out_the_first() -> None:
    for depth in range(1, 50):
        for full in range(depth):
            layers = HybridConfig(8, full).full_layers(depth)
            assert len(set(layers)) == full
            assert set(layers) <= set(range(1, depth))


def test_shapes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="sliding_window must be at least 1, got 0"):
        HybridConfig(0, 1)
    with pytest.raises(ValueError, match="full_attention_layers must be at least 0, got -1"):
        HybridConfig(8, -1)
    with pytest.raises(ValueError, match=r"full_attention_layers \(3\) must be below layers \(3\)"):
        config_of(HybridConfig(8, 3))
    latent = deepseek_config(
        vocab_size=61,
        width=32,
        layers=2,
        heads=4,
        head_width=8,
        feed_forward_width=48,
        latent=LatentConfig(width=20, rotary_width=6, value_width=10),
        experts=None,
    )
    with pytest.raises(ValueError, match="latent attention has no windowed layers"):
        dataclasses.replace(latent, hybrid=HybridConfig(8, 1))
    with pytest.raises(ValueError, match="has layers of windowed attention, so a model of this"):
        to_hf_config(config_of(HybridConfig(8, 1)))


def test_a_shape_is_read_back_and_one_from_before_windowed_layers_too() -> None:
    for config in (config_of(HybridConfig(8, 1)), config_of(None)):
        assert decoder_config_from(dataclasses.asdict(config)) == config
    before = dataclasses.asdict(config_of(None))
    del before["hybrid"]
    assert decoder_config_from(before) == config_of(None)


def test_a_windowed_layer_counts_as_a_band() -> None:
    plain, hybrid = config_of(None), config_of(HybridConfig(WINDOW, 1))
    saved = lm_training_flops(plain, batch=2, tokens=N) - lm_training_flops(
        hybrid, batch=2, tokens=N
    )
    assert saved == 2 * 2 * (6 * 2 * 4 * 8) * N * (N - WINDOW)
    short = [lm_training_flops(one, batch=1, tokens=WINDOW) for one in (plain, hybrid)]
    assert short[0] == short[1]


@pytest.mark.parametrize("layers", [1, 3])
def test_windowed_layers_reach_their_depth_times_the_window_and_no_further(layers: int) -> None:
    window, changed = 5, 11
    model, ids = make_model(window, full=0, layers=layers), draw()
    other = ids.clone()
    other[0, changed] = (other[0, changed] + 1) % 61
    with torch.no_grad():
        differs = (model(ids) != model(other)).any(-1)[0]
    reach = layers * (window - 1)
    assert differs.nonzero().flatten().tolist() == list(range(changed, changed + reach + 1))


def test_a_window_over_everything_is_full_attention() -> None:
    model, ids = make_model(window=N), draw()
    plain = DecoderLM(dataclasses.replace(model.config, hybrid=None), torch.Generator())
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(ids), plain(ids), rtol=0, atol=1e-5)
        narrow = make_model()(ids)
        assert (narrow - plain(ids))[:, WINDOW:].abs().max() > 1e-2


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_a_scheme_changes_the_full_layers_only(scheme: PositionScheme) -> None:
    model, ids = make_model(), draw()
    (full,) = HybridConfig(WINDOW, 1).full_layers(3)
    seen: list[torch.Tensor] = []
    model.decoder.blocks[full].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plan = plan_for(model.config, scheme, train_length=TRAINED, length=N)
    with torch.no_grad():
        difference = model(ids, position_plan=plan) - model(ids)
        assert torch.equal(seen[0], seen[1])
        assert difference.abs().max() > 1e-3
        windowed_only = make_model(full=0)
        assert torch.equal(windowed_only(ids, position_plan=plan), windowed_only(ids))


@pytest.mark.parametrize("scheme", [None, *SCHEMES], ids=lambda s: s.name if s else "none")
def test_steps_and_chunks_equal_one_forward(scheme: PositionScheme | None) -> None:
    model, ids = make_model(), draw()
    lm = model if scheme is None else planned(model, scheme)
    with torch.no_grad():
        whole = lm(ids)[0]
        for chunk in (1, 7, WINDOW - 1, WINDOW, WINDOW + 1, N):
            contiguous = ContiguousCache(lm.cache_layouts(), capacity=96)
            paged = PagedCache(lm.cache_layouts(), pages=12)
            pages = [7, 8, 9, 2, 0, 11]
            for first in range(0, N, chunk):
                part = ids[0, first : first + chunk]
                expected = whole[first : first + chunk]
                found = lm.cached(part, contiguous.step([len(part)]))
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
                step = paged.step([PagedSequence(pages, past=first, new=len(part))])
                torch.testing.assert_close(lm.cached(part, step), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_rows_depend_on_nothing_beside_or_before_them(scheme: PositionScheme) -> None:
    lm = planned(make_model(), scheme)
    ids = draw(3)
    lengths = [N, 30, 55]
    mask = torch.zeros(3, N, dtype=torch.bool)
    padded = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, N - length :] = True
        padded[row, N - length :] = ids[row, :length]
    with torch.no_grad():
        together = lm(padded, mask)
        assert together.isfinite().all()
        for row, length in enumerate(lengths):
            alone = lm(ids[row : row + 1, :length])[0]
            torch.testing.assert_close(together[row][mask[row]], alone, rtol=0, atol=2e-5)
        documents = torch.tensor([[0] * 31 + [1] * 2 + [2] * 50])
        packed = lm.model(ids[:1], document_ids=documents, position_plan=lm.plan)[0]
        for first, last in ((0, 31), (31, 33), (33, N)):
            alone = lm(ids[:1, first:last])[0]
            torch.testing.assert_close(packed[first:last], alone, rtol=0, atol=2e-5)


def test_a_beginning_taken_over_reads_as_if_it_were_ones_own() -> None:
    lm, ids = planned(make_model(), PositionScheme("rerope", window=9)), draw()[0]
    cache = PagedCache(lm.cache_layouts(), pages=8, sequences=2)
    with torch.no_grad():
        whole = lm(ids[None])[0]
        lm.cached(ids[:64], cache.step([PagedSequence(range(4), 0, 64, slot=0)]))
        taken_over = PagedSequence([0, 1, 2, 3, 6, 7], 64, N - 64, slot=1, ring_is_stale=True)
        rest = lm.cached(ids[64:], cache.step([taken_over]))
    torch.testing.assert_close(rest, whole[64:], rtol=0, atol=2e-5)


def test_a_token_reads_the_window_only_whatever_the_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = make_model(full=0), draw()[0]
    read: list[int] = []
    own = LayerCache.read_last

    def counting(cache: LayerCache, *arguments: object) -> torch.Tensor:
        found = own(cache, *arguments)  # type: ignore[arg-type]
        read.append(found.shape[1])
        return found

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("a windowed layer reads everything")

    monkeypatch.setattr(LayerCache, "read_last", counting)
    monkeypatch.setattr(LayerCache, "read", refuse)
    cache = PagedCache(model.cache_layouts(), pages=-(-N // PAGE_TOKENS))
    with torch.no_grad():
        model.cached(ids[:60], cache.step([PagedSequence(range(6), 0, 60)]))
        for past in range(60, N):
            model.cached(ids[past : past + 1], cache.step([PagedSequence(range(6), past, 1)]))
    assert set(read[3:]) == {WINDOW}


def test_a_full_layer_has_a_ring_under_rerope_and_a_windowed_one_has_none() -> None:
    lm = planned(make_model(), PositionScheme("rerope", window=9))
    assert [len(layout.rings) for layout in lm.cache_layouts()] == [0, 0, 1]
