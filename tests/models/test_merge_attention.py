"""One pass over the pairs against the matrix of all logits: outputs, gradients, counts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models import merge_attention, positions, tile_kernels
from models.attention_mask import derived_positions
from models.branch_attention import AttentionBackend, branch_attention, branch_inputs
from models.positions import PositionPlan, PositionScheme
from models.rotary import RotaryLayout, rotary_tables, rotate

TRAINED = 24
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_plan(
    name: str, *, length: int, layout: RotaryLayout = "half", width: int = 8, **fields: object
) -> PositionPlan:
    return positions.plan(
        PositionScheme(name=name, **fields),  # type: ignore[arg-type]
        train_length=TRAINED,
        length=length,
        rotary_width=width,
        rotary_base=10_000.0,
        layout=layout,
    )


def windowed(window: int, *, length: int, layout: RotaryLayout = "half") -> list[PositionPlan]:
    return [
        make_plan("rerope", length=length, layout=layout, window=window),
        make_plan("leaky_rerope", length=length, layout=layout, window=window, interval=4.0),
        make_plan("inv_leaky_rerope", length=length, layout=layout, window=window, interval=0.25),
        make_plan("self_extend", length=length, layout=layout, window=window, group=3),
    ]


def draw(
    n: int, *, batch: int = 2, heads: int = 4, shared: int = 2, dtype: torch.dtype = torch.float32
) -> Inputs:
    generator = torch.Generator().manual_seed(n)
    q, k, v = (
        torch.randn(batch, n, h, 8, generator=generator, dtype=dtype)
        for h in (heads, shared, shared)
    )
    return q, k, v


def attend(
    position_plan: PositionPlan,
    inputs: Inputs,
    *,
    backend: AttentionBackend = "merge",
    at: torch.Tensor | None = None,
    segments: torch.Tensor | None = None,
) -> torch.Tensor:
    n = inputs[0].shape[1]
    shared = branch_inputs(
        position_plan,
        torch.arange(n)[None] if at is None else at,
        dtype=inputs[0].dtype,
        segments_BT=segments,
        start_is_zero=at is None,
        backend=backend,
    )
    return branch_attention(*inputs, shared)


def plain_rope(inputs: Inputs, layout: RotaryLayout = "half") -> torch.Tensor:
    q, k, v = inputs
    at = torch.arange(q.shape[1])[None]
    tables = rotary_tables(at, rotary_width=8, base=10_000.0, dtype=q.dtype)
    q, k = rotate(q, tables, layout), rotate(k, tables, layout)
    return F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )


@pytest.fixture(params=["flash", "blocked"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kernels, the fall-back forced where it would not be chosen."""
    if request.param == "blocked":
        monkeypatch.setattr(tile_kernels, "HAS_FLASH", False)
    return str(request.param)


def test_the_private_operator_of_torch_still_means_what_we_take_it_to_mean() -> None:
    assert tile_kernels.HAS_FLASH


@pytest.mark.parametrize("n", [1, 9, 101])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_merge_equals_dense(kernel: str, n: int, groups: int) -> None:
    inputs = draw(n, heads=4, shared=4 // groups)
    for window in (1, 7, 16, max(n - 1, 1), n, n + 5):
        for position_plan in windowed(window, length=n):
            dense = attend(position_plan, inputs, backend="dense")
            merged = attend(position_plan, inputs)
            torch.testing.assert_close(merged, dense, rtol=0, atol=2e-6)


def test_dual_chunks_by_tiles_equal_dense(kernel: str) -> None:
    inputs = draw(101)
    for fields in ({}, {"chunk": 20, "local": 0}, {"chunk": 9, "local": 8}):
        position_plan = make_plan("dca", length=101, **fields)
        dense = attend(position_plan, inputs, backend="dense")
        torch.testing.assert_close(attend(position_plan, inputs), dense, rtol=0, atol=2e-6)


@pytest.mark.parametrize("window", [1, 7, 30])
def test_packed_documents_and_left_padding_equal_each_document_alone(
    kernel: str, window: int
) -> None:
    q, k, v = draw(83)
    segments = torch.zeros(2, 83, dtype=torch.long)
    segments[0, 11:50] = 1
    segments[0, 50:] = 2
    segments[1, :20] = -1
    at = derived_positions(segments, segments >= 0, segments)
    pieces = [(0, 0, 11), (0, 11, 50), (0, 50, 83), (1, 20, 83)]
    for position_plan in [*windowed(window, length=83), make_plan("dca", length=83, log_n="post")]:
        dense = attend(position_plan, (q, k, v), backend="dense", at=at, segments=segments)
        merged = attend(position_plan, (q, k, v), at=at, segments=segments)
        torch.testing.assert_close(merged, dense, rtol=0, atol=2e-6)
        assert not merged[1, :, :20].any(), "padded queries give zeros"
        for row, start, stop in pieces:
            alone = attend(
                position_plan,
                tuple(x[row : row + 1, start:stop] for x in (q, k, v)),  # type: ignore[arg-type]
            )
            torch.testing.assert_close(
                merged[row : row + 1, :, start:stop], alone, rtol=0, atol=2e-6
            )


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_limits_hold_on_the_outputs(layout: RotaryLayout) -> None:
    n = 40
    inputs = draw(n)

    def out(name: str, **fields: object) -> torch.Tensor:
        position_plan = make_plan(name, length=n, layout=layout, **fields)
        several = len(positions.branches(position_plan)) > 1
        return attend(position_plan, inputs, backend="merge" if several else "dense")

    rope = plain_rope(inputs, layout)
    close = {"rtol": 0.0, "atol": 1e-6}
    for window in (1, 13):
        endless = out("leaky_rerope", window=window, interval=math.inf)
        torch.testing.assert_close(out("rerope", window=window), endless, **close)
        torch.testing.assert_close(out("leaky_rerope", window=window, interval=1.0), rope, **close)
        torch.testing.assert_close(out("self_extend", window=window, group=1), rope, **close)
    torch.testing.assert_close(out("rerope", window=n), rope, **close)
    torch.testing.assert_close(out("rope"), rope, **close)
    mixed = out("ntk_mixed", interval=4.0, beta=1.0)
    torch.testing.assert_close(mixed, out("ntk_fixed", interval=4.0), **close)
    interpolated = out("ntk_mixed", interval=4.0, beta=0.0)
    torch.testing.assert_close(interpolated, out("pi", interval=4.0), **close)
    torch.testing.assert_close(out("yarn", interval=1.0), rope, **close)


def test_inside_window_and_training_length_nothing_differs_from_rope_in_any_bit() -> None:
    inputs = draw(TRAINED)
    rope = attend(make_plan("rope", length=TRAINED, log_n="none"), inputs, backend="dense")
    found = make_plan("rerope", length=TRAINED, window=TRAINED, log_n="post")
    assert torch.equal(attend(found, inputs, backend="dense"), rope)
    assert torch.equal(attend(found, inputs), plain_rope(inputs))


def test_far_tokens_are_a_bag_for_rerope_and_a_sequence_for_leaky() -> None:
    n, w = 60, 16
    q, k, v = draw(n, dtype=torch.float64)
    order = torch.arange(n)
    order[[3, 20]] = order[[20, 3]]
    swapped = (q, k[:, order], v[:, order])
    later = slice(20 + w, n)
    rerope, leaky, *_ = windowed(w, length=n)
    torch.testing.assert_close(
        attend(rerope, swapped)[:, :, later],
        attend(rerope, (q, k, v))[:, :, later],
        atol=1e-12,
        rtol=0,
    )
    change = attend(leaky, swapped)[:, :, later] - attend(leaky, (q, k, v))[:, :, later]
    assert change.abs().max() > 1e-3


def test_shifting_all_positions_of_a_document_changes_nothing() -> None:
    n = 50
    inputs = draw(n)
    rerope, leaky, inverse, grouped = windowed(12, length=n)
    for position_plan, shift in ((rerope, 37), (leaky, 37), (inverse, 37), (grouped, 36)):
        counts = torch.arange(n)[None] + 1
        shared = branch_inputs(
            position_plan, torch.arange(n)[None] + shift, dtype=torch.float32, counts_BT=counts
        )
        torch.testing.assert_close(
            branch_attention(*inputs, shared), attend(position_plan, inputs), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("n", [1, 17, 200, 333])
def test_every_causal_pair_is_evaluated_once(n: int) -> None:
    like = torch.empty(0)
    plans = [make_plan("dca", length=n)]
    for window in (1, 16, 100, n, n + 1):
        plans.append(make_plan("rerope", length=n, window=window))
    for position_plan in plans:
        at = torch.arange(n)[None]
        for tiles in (
            merge_attention.plain_tiles(position_plan, n, like),
            merge_attention.masked_tiles(position_plan, at, None, like),
        ):
            assert sum(tile.visible_pairs() for tile in tiles) == n * (n + 1) // 2
            if position_plan.scheme.name == "rerope":
                w = min(position_plan.window, n)
                near = sum(tile.visible_pairs() for tile in tiles if tile.branch == 0)
                assert near == n * w - w * (w - 1) // 2


def gradients(
    position_plan: PositionPlan, inputs: Inputs, backend: AttentionBackend, **packed: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    out = attend(position_plan, leaves, backend=backend, **packed)  # type: ignore[arg-type]
    weights = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view_as(out).cos()
    return torch.autograd.grad((out * weights).sum(), leaves)


def test_gradients_equal_those_of_the_dense_form(kernel: str) -> None:
    n = 101
    inputs = draw(n, dtype=torch.float64)
    segments = (torch.arange(n)[None] >= 33).long().repeat(2, 1)
    packed = {"at": derived_positions(segments, None, segments), "segments": segments}
    plans = [make_plan("dca", length=n)]
    for window in (1, 16, n + 1):
        plans += windowed(window, length=n)
    for position_plan in plans:
        for more in ({}, packed):
            expected = gradients(position_plan, inputs, "dense", **more)
            found = gradients(position_plan, inputs, "merge", **more)
            for one, other in zip(found, expected, strict=True):
                assert (one - other).norm() < 1e-5 * other.norm()
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_gradients_by_finite_differences(kernel: str) -> None:
    drawn = draw(9, batch=1, heads=2, shared=1, dtype=torch.float64)
    inputs = tuple(x.requires_grad_() for x in drawn)
    for position_plan in windowed(3, length=9)[:2]:
        assert torch.autograd.gradcheck(
            lambda *x, position_plan=position_plan: attend(position_plan, x),
            inputs,
            fast_mode=True,  # random directions: the dense form checks each entry above
        )


def test_half_precision_merges_without_losing_more_than_its_rounding(kernel: str) -> None:
    inputs = draw(101)
    position_plan = make_plan("rerope", length=101, window=16)
    half = tuple(x.bfloat16() for x in inputs)
    found = attend(position_plan, half)  # type: ignore[arg-type]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), attend(position_plan, inputs), rtol=0, atol=5e-2)


def test_autocast_computes_in_its_own_precision(kernel: str) -> None:
    q, k, v = draw(60)
    v = v.bfloat16()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    position_plan = make_plan("rerope", length=60, window=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(position_plan, (q, k, v))
    assert out.dtype == torch.bfloat16
    expected = attend(position_plan, (q, k, v.float()))
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=5e-2)
    for gradient in torch.autograd.grad(out.float().sum(), leaves):
        assert gradient.isfinite().all()


def test_values_of_another_width_than_keys() -> None:
    q, k, _ = draw(50)
    v = torch.randn(2, 50, 2, 12, generator=torch.Generator().manual_seed(1))
    position_plan = make_plan("rerope", length=50, window=16)
    dense = attend(position_plan, (q, k, v), backend="dense")
    torch.testing.assert_close(attend(position_plan, (q, k, v)), dense, rtol=0, atol=2e-6)
