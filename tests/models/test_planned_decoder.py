"""A decoder under every position scheme: whole, by steps, in chunks, and beside transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models import branch_cache, key_value_attention, positions
from models.attention import CausalSelfAttention
from models.contiguous_cache import ContiguousCache
from models.decoder import DecoderLM
from models.decoder_config import deepseek_config, llama_config
from models.hf_config import from_hf_config
from models.hf_layout import from_hf
from models.latent_config import LatentConfig
from models.paged_cache import PAGE_TOKENS, PagedCache, PagedSequence
from models.planned_lm import PlannedLM, generating, plan_for
from models.positions import PositionScheme
from models.yarn import YarnConfig

TRAINED, N = 24, 83
SCHEMES = [
    PositionScheme("rope", log_n="post"),
    PositionScheme("pi", interval=4.0),
    PositionScheme("ntk_old", interval=4.0),
    PositionScheme("ntk", interval=4.0),
    PositionScheme("ntk_fixed", interval=4.0),
    PositionScheme("ntk_mixed", interval=4.0),
    PositionScheme("yarn", interval=4.0, log_n="train"),
    PositionScheme("nope"),
    PositionScheme("dca", log_n="post"),
    PositionScheme("self_extend", window=9, group=4),
    PositionScheme("rerope", window=9, log_n="post"),
    PositionScheme("leaky_rerope", window=9, interval=8.0, log_n="train"),
]
WINDOWS = [1, 9, N - 1, N, N + 7]


def named(scheme: PositionScheme) -> str:
    return scheme.name


def make_model(shared: int = 2, seed: int = 0) -> DecoderLM:
    config = llama_config(
        vocab_size=61,
        width=32,
        layers=2,
        heads=4,
        key_value_heads=shared,
        feed_forward_width=48,
        max_positions=TRAINED,
    )
    model = DecoderLM(config, torch.Generator().manual_seed(seed))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            # Attention of the initial weights is nearly uniform and would hide positions.
            parameter.data.mul_(4.0)
    return model


def draw(batch: int = 1, tokens: int = N) -> torch.Tensor:
    return torch.randint(61, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


def planned(model: DecoderLM, scheme: PositionScheme, longest: int = 96) -> PlannedLM:
    return generating(model, scheme, train_length=TRAINED, longest=longest)


@torch.no_grad()
def in_chunks(lm: PlannedLM, ids_T: torch.Tensor, chunk: int) -> torch.Tensor:
    cache = ContiguousCache(lm.cache_layouts(), capacity=96)
    return torch.cat([lm.cached(part, cache.step([len(part)])) for part in ids_T.split(chunk)])


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_stepwise_and_chunked_equal_one_forward(scheme: PositionScheme) -> None:
    lm = planned(make_model(), scheme)
    ids = draw()
    with torch.no_grad():
        whole = lm(ids)[0]
    for chunk in (1, 7, 8, 9, 10, N):
        torch.testing.assert_close(in_chunks(lm, ids[0], chunk), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("window", WINDOWS)
def test_attention_agrees_in_all_forms_for_every_window_and_group(window: int, shared: int) -> None:
    model = make_model(shared)
    layer = model.decoder.blocks[0].attention
    assert isinstance(layer, CausalSelfAttention)
    x_Td = torch.randn(N, 32, generator=torch.Generator().manual_seed(1))
    for scheme in (
        PositionScheme("rerope", window=window, log_n="post"),
        PositionScheme("leaky_rerope", window=window, interval=4.0),
        PositionScheme("self_extend", window=window, group=3),
    ):
        plan = plan_for(model.config, scheme, train_length=TRAINED, length=96)
        outputs = {}
        with torch.no_grad():
            for backend in ("dense", "merge"):
                inputs = attention_inputs(plan, backend)
                outputs[backend] = layer(x_Td[None], inputs)[0]
            for chunk in {1, 7, max(window - 1, 1), window, window + 1, N}:
                cache = ContiguousCache([layer.cache_layout(plan)], capacity=96)
                parts = []
                for part in x_Td.split(chunk):
                    step = cache.step([len(part)])
                    shared_step = branch_cache.step_scheme(plan, step, torch.float32)
                    parts.append(
                        layer.cached(
                            part,
                            shared_step.branches[0].query,
                            step.groups,
                            step.layer(0),
                            shared_step,
                        )
                    )
                outputs[f"chunks of {chunk}"] = torch.cat(parts)
        for name, found in outputs.items():
            difference = (found - outputs["dense"]).abs().max().item()
            assert difference < 2e-6, f"{scheme.name}, {name}: {difference}"


def attention_inputs(
    plan: positions.PositionPlan, backend: str, dtype: torch.dtype = torch.float32
) -> key_value_attention.AttentionInputs:
    from models.planned_inputs import planned_inputs

    return planned_inputs(
        plan,
        torch.zeros(1, N, dtype=torch.long),
        attention_mask=None,
        position_ids=None,
        document_ids=None,
        dtype=dtype,
        backend=backend,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("scheme", SCHEMES[-4:], ids=named)
def test_a_row_does_not_depend_on_its_mates_nor_on_its_padding(scheme: PositionScheme) -> None:
    model = make_model()
    lm = planned(model, scheme)
    ids = draw(3)
    lengths = [N, 30, 55]
    for left in (True, False):
        mask = torch.zeros(3, N, dtype=torch.bool)
        padded = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            place = slice(N - length, N) if left else slice(0, length)
            mask[row, place] = True
            padded[row, place] = ids[row, :length]
        with torch.no_grad():
            together = lm(padded, mask)
            for row, length in enumerate(lengths):
                alone = lm(ids[row : row + 1, :length])[0]
                torch.testing.assert_close(together[row][mask[row]], alone, rtol=0, atol=1e-5)
        assert together.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_ragged_steps_on_pages_equal_each_sequence_alone(scheme: PositionScheme) -> None:
    lm = planned(make_model(), scheme)
    ids = draw(3)
    lengths = [60, 22, 35]
    pages = -(-96 // PAGE_TOKENS)
    cache = PagedCache(lm.cache_layouts(), pages=3 * pages, sequences=3)
    tables = [list(range(row, 3 * pages, 3)) for row in range(3)]
    past = [0, 0, 0]
    found: list[list[torch.Tensor]] = [[], [], []]
    chunks = [[40, 21, 33], [18, 1, 2], *([1, 1, 1] for _ in range(2))]
    with torch.no_grad():
        for new in chunks:
            new = [min(m, lengths[row] - past[row]) for row, m in enumerate(new)]
            rows = [row for row in range(3) if new[row]]
            step = cache.step(
                [PagedSequence(tables[row], past[row], new[row], slot=row) for row in rows]
            )
            tokens = torch.cat([ids[row, past[row] : past[row] + new[row]] for row in rows])
            logits = lm.cached(tokens, step).split([new[row] for row in rows])
            for row, part in zip(rows, logits, strict=True):
                found[row].append(part)
                past[row] += new[row]
        for row in range(3):
            alone = lm(ids[row : row + 1, : past[row]])[0]
            torch.testing.assert_close(torch.cat(found[row]), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES[-3:], ids=named)
@pytest.mark.parametrize("new", [1, 7])
def test_a_stale_ring_is_rebuilt_from_what_is_kept_for_every_token(
    scheme: PositionScheme, new: int
) -> None:
    lm = planned(make_model(), scheme)
    ids = draw()[0]
    cache = PagedCache(lm.cache_layouts(), pages=8, sequences=2)
    with torch.no_grad():
        lm.cached(ids[:48], cache.step([PagedSequence(range(6), 0, 48, slot=0)]))
        taken_over = PagedSequence([0, 1, 2, 6, 7], 48, new, slot=1, ring_is_stale=True)
        found = lm.cached(ids[48 : 48 + new], cache.step([taken_over]))
        expected = lm(ids[None, : 48 + new])[0, 48:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_cache_refuses_a_step_under_another_scheme() -> None:
    model = make_model()
    one, other = (planned(model, PositionScheme("yarn", interval=k)) for k in (2.0, 4.0))
    cache = ContiguousCache(one.cache_layouts(), capacity=96)
    ids = draw()[0]
    with torch.no_grad():
        one.cached(ids[:4], cache.step([4]))
        with pytest.raises(ValueError, match="cannot be read under"):
            other.cached(ids[4:5], cache.step([1]))
        with pytest.raises(ValueError, match="cannot be read under None"):
            model.cached(ids[4:5], cache.step([1]))


def test_a_step_rotates_as_much_whatever_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = planned(make_model(), PositionScheme("rerope", window=9))
    turned: list[int] = []
    plain = branch_cache.rotate

    def counting(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        turned.append(x.numel())
        return plain(x, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(branch_cache, "rotate", counting)
    monkeypatch.setattr(key_value_attention, "rotate", counting)
    cache = ContiguousCache(lm.cache_layouts(), capacity=96)
    ids = draw()[0]
    totals = []
    with torch.no_grad():
        lm.cached(ids[:20], cache.step([20]))
        for position in range(20, 60):
            turned.clear()
            lm.cached(ids[position : position + 1], cache.step([1]))
            totals.append(sum(turned))
    # Two rotations of every query and one of the key, in each of two layers.
    assert set(totals) == {2 * (2 * 32 + 16)}


def test_plain_rope_as_a_scheme_is_the_decoder_itself_in_every_bit() -> None:
    model = make_model()
    ids = draw()
    plan = plan_for(model.config, PositionScheme("rope"), train_length=TRAINED, length=N)
    with torch.no_grad():
        assert torch.equal(model(ids, position_plan=plan), model(ids))


def test_a_llama_of_transformers_has_equal_logits_under_rope() -> None:
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    ).eval()
    config = from_hf_config(theirs.config.to_dict())
    ours = DecoderLM(config, torch.Generator())
    ours.load_state_dict(from_hf(theirs.state_dict(), config))
    ids = draw(2)
    plan = plan_for(config, PositionScheme("rope"), train_length=128, length=N)
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids, position_plan=plan), expected, rtol=0, atol=1e-5)
        for scheme in SCHEMES:
            plan = plan_for(config, scheme, train_length=TRAINED, length=N)
            assert ours(ids, position_plan=plan).isfinite().all()


def test_plans_that_do_not_fit_are_refused() -> None:
    model = make_model()
    other = positions.plan(
        PositionScheme("rope"), train_length=24, length=48, rotary_width=6, rotary_base=1e4
    )
    with pytest.raises(ValueError, match="rotary width and base"):
        model(draw(), position_plan=other)
    plan = plan_for(model.config, PositionScheme("rerope", window=4), train_length=24, length=48)
    with pytest.raises(ValueError, match="must rise by one"):
        model(draw(), position_plan=plan, position_ids=torch.arange(N).flip(0)[None])
    with pytest.raises(ValueError, match="needs a fixed interval"):
        planned(model, PositionScheme("ntk"))


def make_latent_model(query_width: int = 0, yarn: YarnConfig | None = None) -> DecoderLM:
    config = deepseek_config(
        vocab_size=61,
        width=32,
        layers=2,
        heads=4,
        head_width=8,
        feed_forward_width=48,
        latent=LatentConfig(width=20, rotary_width=6, value_width=10, query_width=query_width),
        experts=None,
        max_positions=TRAINED,
        yarn=yarn,
    )
    model = DecoderLM(config, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            # As of `make_model`; the initial weights of this shape are smaller.
            parameter.data.mul_(40.0)
    return model


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_latent_attention_is_the_same_whole_by_steps_and_in_chunks(scheme: PositionScheme) -> None:
    lm = planned(make_latent_model(query_width=12), scheme)
    ids = draw()
    with torch.no_grad():
        whole = lm(ids)[0]
    for chunk in (1, 7, 8, 9, 10, N):
        torch.testing.assert_close(in_chunks(lm, ids[0], chunk), whole, rtol=0, atol=5e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_latent_attention_agrees_in_all_forms_for_every_window(window: int) -> None:
    model = make_latent_model().double()
    layer = model.decoder.blocks[0].attention
    x_BTd = torch.randn(1, N, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for scheme in (
        PositionScheme("rerope", window=window, log_n="post"),
        PositionScheme("leaky_rerope", window=window, interval=4.0),
        PositionScheme("self_extend", window=window, group=3),
        PositionScheme("dca"),
    ):
        plan = plan_for(model.config, scheme, train_length=TRAINED, length=96)
        with torch.no_grad():
            dense, merged = (
                layer(x_BTd, attention_inputs(plan, backend, torch.float64))
                for backend in ("dense", "merge")
            )
        torch.testing.assert_close(merged, dense, rtol=0, atol=1e-10)


def test_a_window_over_everything_leaves_latent_attention_as_it_is() -> None:
    model, ids = make_latent_model(), draw()
    with torch.no_grad():
        plain = model(ids)
        planned_logits = planned(model, PositionScheme("rerope", window=N))(ids)
        narrow = planned(model, PositionScheme("rerope", window=9))(ids)
    torch.testing.assert_close(planned_logits, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow[:, :9], plain[:, :9], rtol=0, atol=1e-5)
    assert (narrow[:, 30:] - plain[:, 30:]).abs().max() > 1e-2


def test_a_latent_cache_under_rerope_adds_a_ring_of_rotary_keys_alone() -> None:
    lm = planned(make_latent_model(), PositionScheme("rerope", window=9))
    cache = ContiguousCache(lm.cache_layouts(), capacity=96)
    assert cache.bytes_per_token == 2 * (20 + 6) * 4
    assert cache.ring_bytes_per_sequence == 2 * 9 * 6 * 4


def test_a_latent_prefix_of_another_sequence_has_its_ring_rebuilt() -> None:
    lm = planned(make_latent_model(), PositionScheme("leaky_rerope", window=9, interval=8.0))
    ids = draw()[0]
    with torch.no_grad():
        whole = lm(ids[None])[0]
        cache = PagedCache(lm.cache_layouts(), pages=8, sequences=2)
        lm.cached(ids[:64], cache.step([PagedSequence(range(4), 0, 64, slot=0)]))
        taken_over = PagedSequence([0, 1, 2, 3, 6, 7], 64, N - 64, slot=1, ring_is_stale=True)
        rest = lm.cached(ids[64:], cache.step([taken_over]))
    torch.testing.assert_close(rest, whole[64:], rtol=0, atol=5e-5)


YARN = YarnConfig(
    factor=4.0,
    original_positions=TRAINED // 4,
    beta_fast=4.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=0.7,
)


@pytest.mark.parametrize("query_width", [0, 12])
def test_a_scheme_on_top_of_the_models_own_yarn_keeps_its_frequencies_and_its_factors(
    query_width: int,
) -> None:
    model = make_latent_model(query_width, YARN)
    ids = draw()
    with torch.no_grad():
        plain = model(ids)[0]
        # Inside the window ReRoPE is what the model is of itself.
        wide = planned(model, PositionScheme("rerope", window=N, compose=True))
        torch.testing.assert_close(wide(ids)[0], plain, rtol=0, atol=5e-5)
        narrow = planned(model, PositionScheme("rerope", window=9, compose=True))
        whole = narrow(ids)[0]
    assert (whole - plain).abs().max() > 0.1
    for lm, expected in ((wide, plain), (narrow, whole)):
        for chunk in (1, 9, N):
            found = in_chunks(lm, ids[0], chunk)
            torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_rerope_is_the_limit_of_leaky_rerope_also_on_top_of_the_models_own_yarn() -> None:
    model, ids = make_latent_model(yarn=YARN), draw()
    assert YARN.magnitude != 1.0
    with torch.no_grad():
        clipped = planned(model, PositionScheme("rerope", window=9, compose=True))(ids)[0]
        leaky = PositionScheme("leaky_rerope", window=9, interval=1e9, compose=True)
        torch.testing.assert_close(planned(model, leaky)(ids)[0], clipped, rtol=0, atol=5e-5)


@pytest.mark.parametrize("scheme", ["rerope", "leaky_rerope"])
def test_on_top_of_yarn_a_beginning_taken_over_reads_as_if_it_were_ones_own(scheme: str) -> None:
    interval = {"interval": 8.0} if scheme == "leaky_rerope" else {}
    made = PositionScheme(scheme, window=9, compose=True, **interval)  # type: ignore[arg-type]
    lm, ids = planned(make_latent_model(yarn=YARN), made), draw()[0]
    with torch.no_grad():
        whole = lm(ids[None])[0]
        cache = PagedCache(lm.cache_layouts(), pages=8, sequences=2)
        lm.cached(ids[:64], cache.step([PagedSequence(range(4), 0, 64, slot=0)]))
        taken_over = PagedSequence([0, 1, 2, 3, 6, 7], 64, N - 64, slot=1, ring_is_stale=True)
        rest = lm.cached(ids[64:], cache.step([taken_over]))
    torch.testing.assert_close(rest, whole[64:], rtol=0, atol=5e-5)


def test_a_models_own_yarn_and_a_scheme_go_together_only_where_it_is_said() -> None:
    stretched, plain = make_latent_model(yarn=YARN), make_latent_model()
    with pytest.raises(ValueError, match="YaRN of its own: set compose to true to put rerope on"):
        planned(stretched, PositionScheme("rerope", window=9))
    with pytest.raises(ValueError, match="compose is true, but the model has no YaRN of its own"):
        planned(plain, PositionScheme("rerope", window=9, compose=True))
    with pytest.raises(ValueError, match="compose has no meaning for ntk"):
        PositionScheme("ntk", interval=4.0, compose=True)
    elsewhere = planned(stretched, PositionScheme("rerope", window=9, compose=True)).plan
    with pytest.raises(ValueError, match="the model has None, but the plan is for YarnConfig"):
        plain(draw(), position_plan=elsewhere)
