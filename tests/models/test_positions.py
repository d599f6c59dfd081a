"""Position schemes against their table, their limits and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from models import position_checks, positions, rotary_frequencies
from models.positions import PositionPlan, PositionScheme
from models.rotary import angle_tables, rotate

TRAINED = 64


def make_plan(
    name: str, *, length: int = 512, trained: int = TRAINED, width: int = 32, **fields: object
) -> PositionPlan:
    scheme = PositionScheme(name=name, **fields)  # type: ignore[arg-type]
    return positions.plan(
        scheme, train_length=trained, length=length, rotary_width=width, rotary_base=10_000.0
    )


def table(name: str, length: int, **fields: object) -> torch.Tensor:
    return positions.relative_positions(make_plan(name, length=length, **fields), length)


@pytest.mark.parametrize(
    ("name", "fields", "row"),
    [
        ("rope", {}, [7, 6, 5, 4, 3, 2, 1, 0]),
        ("rerope", {"window": 4}, [4, 4, 4, 4, 3, 2, 1, 0]),
        ("leaky_rerope", {"window": 4, "interval": 2.0}, [5.5, 5, 4.5, 4, 3, 2, 1, 0]),
        ("self_extend", {"window": 4, "group": 2}, [5, 5, 4, 4, 3, 2, 1, 0]),
        ("inv_leaky_rerope", {"window": 4, "interval": 0.5}, [10, 8, 6, 4, 3, 2, 1, 0]),
        ("pi", {"interval": 2.0}, [3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0]),
        ("nope", {}, [0] * 8),
    ],
)
def test_row_seven_of_the_relative_positions(
    name: str, fields: dict[str, object], row: list[float]
) -> None:
    assert table(name, 8, **fields)[7].tolist() == row


def test_dual_chunks_against_their_definition() -> None:
    chunk, local, length = 12, 4, 40
    c = chunk - local
    expected = torch.full((length, length), math.nan, dtype=torch.float64)
    for i in range(length):
        for j in range(i + 1):
            gap = i // c - j // c
            query = i % c if gap == 0 else min(i % c + c, chunk) if gap == 1 else chunk
            expected[i, j] = query - j % c
    found = table("dca", length, chunk=chunk, local=local)
    torch.testing.assert_close(found, expected, equal_nan=True)
    # Inside the local size distances are exact, and none is ever above s.
    near = torch.tensor([[0 <= i - j <= local for j in range(length)] for i in range(length)])
    rope = table("rope", length)
    assert torch.equal(found[near], rope[near])
    assert found.nan_to_num().max() == chunk


def test_limits_of_the_schemes_hold_exactly() -> None:
    n, w = 50, 12
    rope = table("rope", n)
    rerope = table("rerope", n, window=w)
    leaky = table("leaky_rerope", n, window=w, interval=math.inf)
    assert torch.equal(rerope.nan_to_num(), leaky.nan_to_num())
    for name, fields in (
        ("leaky_rerope", {"window": w, "interval": 1.0}),
        ("inv_leaky_rerope", {"window": w, "interval": 1.0}),
        ("rerope", {"window": n}),
        ("self_extend", {"window": w, "group": 1}),
        ("pi", {"interval": 1.0}),
    ):
        assert torch.equal(table(name, n, **fields).nan_to_num(), rope.nan_to_num()), name


def test_branches_cover_every_causal_pair_once() -> None:
    at = torch.arange(41)
    for name, fields in (
        ("rope", {}),
        ("rerope", {"window": 7}),
        ("self_extend", {"window": 7, "group": 3}),
        ("dca", {"chunk": 12, "local": 4}),
    ):
        position_plan = make_plan(name, **fields)
        pairs = sum(
            positions.visible(position_plan, branch, at[:, None], at[None]).long()
            for branch in positions.branches(position_plan)
        )
        assert torch.equal(pairs, torch.ones(41, 41, dtype=torch.long).tril())


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40, 63, 64, 65, 300])
def test_largest_relative_position_against_brute_force(length: int) -> None:
    cases: list[tuple[str, dict[str, object]]] = [
        ("rope", {}),
        ("pi", {"interval": 4.0}),
        ("nope", {}),
        ("dca", {}),
        ("dca", {"chunk": 17, "local": 5}),
        ("dca", {"chunk": 9, "local": 8}),
        ("dca", {"chunk": 9, "local": 6}),
    ]
    for window in (1, 3, 16, 64):
        cases += [
            ("rerope", {"window": window}),
            ("leaky_rerope", {"window": window, "interval": 4.0}),
            ("inv_leaky_rerope", {"window": window, "interval": 1 / 16}),
            ("self_extend", {"window": window, "group": 5}),
        ]
    for name, fields in cases:
        position_plan = make_plan(name, **fields)
        brute = positions.relative_positions(position_plan, length).nan_to_num(-1.0).max().item()
        assert positions.max_relative_position(position_plan, length) == pytest.approx(brute), name


@pytest.mark.parametrize("interval", [2.0, 8.0, 16.0])
@pytest.mark.parametrize("length", [64, 200, 512, 800])
def test_leaky_stays_in_range_exactly_where_the_formula_says(interval: float, length: int) -> None:
    window = 16
    position_plan = make_plan("leaky_rerope", window=window, interval=interval)
    within = window + (length - 1 - window) / interval <= TRAINED - 1
    brute = positions.relative_positions(position_plan, length).nan_to_num().max() <= TRAINED - 1
    assert bool(brute) == within
    assert position_checks.flags(position_plan, length).is_extrapolating != within


def test_ntk_keeps_the_first_frequency_and_ends_at_that_of_interpolation() -> None:
    plain = rotary_frequencies.rope_frequencies(64, 10_000.0, dtype=torch.float64)
    ntk = rotary_frequencies.ntk_frequencies(64, 10_000.0, 8.0, dtype=torch.float64)
    assert ntk[0] == 1.0
    torch.testing.assert_close(ntk[-1], plain[-1] / 8.0, rtol=1e-12, atol=0)
    fixed = rotary_frequencies.ntk_fixed_frequencies(64, 10_000.0, 8.0, dtype=torch.float64)
    torch.testing.assert_close(
        (plain / fixed).prod().item(), 8.0 ** ((32 + 1) / 2), rtol=1e-12, atol=0
    )


def test_mixed_ntk_runs_from_interpolation_to_the_fixed_form() -> None:
    plain = rotary_frequencies.rope_frequencies(32, 10_000.0)
    for beta, expected in (
        (0.0, plain / 8.0),
        (1.0, rotary_frequencies.ntk_fixed_frequencies(32, 10_000.0, 8.0)),
    ):
        found = rotary_frequencies.ntk_mixed_frequencies(32, 10_000.0, 8.0, beta=beta)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize(("k", "trained"), [(8.0, 64), (4.0, 2048), (40.0, 4096)])
def test_yarn_equals_the_initialiser_of_transformers(width: int, k: float, trained: int) -> None:
    config = LlamaConfig(
        head_dim=width,
        hidden_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=int(k * trained),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": k,
            "original_max_position_embeddings": trained,
        },
    )
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    found = rotary_frequencies.yarn_frequencies(width, 10_000.0, k, train_length=trained)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert rotary_frequencies.yarn_factor(k) == pytest.approx(factor, abs=1e-7)


def test_every_expanded_scheme_is_rope_without_expansion() -> None:
    plain = rotary_frequencies.rope_frequencies(32, 10_000.0)
    for name in positions.EXPANDED:
        position_plan = make_plan(name, length=TRAINED)
        assert position_plan.interval == 1.0
        assert torch.equal(positions.frequencies(position_plan), plain)
    assert rotary_frequencies.yarn_factor(1.0) == 1.0
    assert make_plan("pi", length=4 * TRAINED).interval == 4.0
    assert make_plan("pi", length=4 * TRAINED, interval=2.0).interval == 2.0


def test_log_n_factor_at_its_fixed_points() -> None:
    counts = torch.tensor([1, 2, 64, 512, 4096])
    train = positions.log_n_factor(make_plan("rope", trained=512, log_n="train"), counts)
    assert train[0] == 0.0
    assert train[3] == 1.0
    assert train[4].item() == pytest.approx(4 / 3, abs=1e-7)
    post = positions.log_n_factor(make_plan("rope", trained=512, log_n="post"), counts)
    assert post[:4].tolist() == [1.0] * 4
    assert post[4] == train[4]
    assert positions.log_n_factor(make_plan("rope"), counts).tolist() == [1.0] * 5


def test_inverse_leaky_training_must_reach_its_target() -> None:
    reach = make_plan("inv_leaky_rerope", trained=512, window=128, interval=1 / 16)
    assert positions.max_relative_position(reach, 512) == 6256.0
    position_checks.require_training_reach(reach, 4096)
    with pytest.raises(ValueError, match="trains positions up to 6256 only"):
        position_checks.require_training_reach(reach, 8192)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "alibi"}, "name must be one of rope, pi"),
        ({"name": "rope", "log_n": "yes"}, "log_n must be one of none, post, train"),
        ({"name": "rerope"}, "rerope needs window"),
        ({"name": "rerope", "window": 0}, r"window must lie in \[1, 2\^20\], got 0"),
        ({"name": "rerope", "window": 2**20 + 1}, "window must lie in"),
        ({"name": "rope", "window": 4}, "window .4. has no meaning for rope"),
        ({"name": "leaky_rerope", "window": 4}, "leaky_rerope needs interval"),
        ({"name": "leaky_rerope", "window": 4, "interval": 0.5}, "must be above 1"),
        ({"name": "inv_leaky_rerope", "window": 4, "interval": 2.0}, "must lie in"),
        ({"name": "self_extend", "window": 4, "group": 0}, "group must be at least 1"),
        ({"name": "yarn", "interval": math.inf}, "must be at least 1 and finite"),
    ],
)
def test_schemes_that_mean_nothing_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PositionScheme(**fields)  # type: ignore[arg-type]


def test_uses_that_would_give_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="scheme of training"):
        position_checks.require_inference(
            PositionScheme(name="inv_leaky_rerope", window=16, interval=1 / 16)
        )
    with pytest.raises(ValueError, match="above 1"):
        position_checks.require_inference(
            PositionScheme(name="leaky_rerope", window=16, interval=1.0)
        )
    with pytest.raises(ValueError, match="needs a fixed interval to generate"):
        position_checks.require_fixed_interval(PositionScheme(name="ntk"))
    position_checks.require_fixed_interval(PositionScheme(name="ntk", interval=8.0))
    with pytest.raises(ValueError, match="trained with it"):
        position_checks.require_log_n(PositionScheme(log_n="train"), "none")
    with pytest.raises(ValueError, match="use 'train'"):
        position_checks.require_log_n(PositionScheme(log_n="none"), "train")
    with pytest.raises(ValueError, match=r"chunk .64. of dca must lie in \[1, 64\)"):
        make_plan("dca", chunk=64)


def test_positions_must_rise_by_one_inside_a_document() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1]])
    position_checks.require_consecutive(torch.tensor([[5, 6, 7, 0, 1]]), documents)
    position_checks.require_consecutive(torch.tensor([[5, 6, 7, 8, 9]]), None)
    for wrong in ([[5, 6, 7, 0, 1]], [[4, 3, 2, 1, 0]], [[0, 1, 3, 4, 5]]):
        with pytest.raises(ValueError, match="must rise by one"):
            position_checks.require_consecutive(torch.tensor(wrong), None)


def test_the_known_collapse_is_flagged() -> None:
    wide = make_plan("rerope", window=TRAINED)
    assert position_checks.flags(wide, 512).window_not_recommended
    assert not position_checks.flags(wide, TRAINED).window_not_recommended
    narrow = position_checks.flags(make_plan("rerope", window=32), 512)
    assert narrow == position_checks.PlanFlags(32.0, False, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_angles_raise(dtype: torch.dtype) -> None:
    frequencies = rotary_frequencies.rope_frequencies(8, 10_000.0)
    with pytest.raises(ValueError, match="half precision cannot hold an angle"):
        angle_tables(torch.arange(4)[None].to(dtype), frequencies, dtype=torch.float32)
    with pytest.raises(ValueError, match="half precision cannot hold an angle"):
        angle_tables(torch.arange(4)[None], frequencies.to(dtype), dtype=torch.float32)


def test_large_positions_have_double_precision_angles() -> None:
    assert positions.frequencies(make_plan("rope", length=2**20)).dtype == torch.float32
    assert positions.frequencies(make_plan("rope", length=2**20 + 1)).dtype == torch.float64


def test_interleaved_pairs_are_a_permutation_of_half_split_pairs() -> None:
    x = torch.randn(2, 5, 3, 12, generator=torch.Generator().manual_seed(0))
    tables = angle_tables(
        torch.arange(5)[None], rotary_frequencies.rope_frequencies(8, 10_000.0), dtype=x.dtype
    )
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7, 8, 9, 10, 11])
    half = rotate(x[..., order], tables)
    interleaved = rotate(x, tables, "interleaved")
    assert torch.equal(interleaved[..., order], half)
